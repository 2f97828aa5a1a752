"""What a benchmark found: figures, a table for people, JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. With `at_most` or `at_least` it has a target to meet."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        if self.at_least is not None:
            return self.value >= self.at_least
        return None

    @property
    def target(self) -> str:
        """The target, for people."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""


@dataclass(slots=True)
class Result:
    """All figures of one benchmark, and in one sentence how they were taken. `error` tells why there are none."""

    benchmark: str
    how: str
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    busy_cores: float = 0.0  # Of the whole machine while it ran, whoever used them.
    error: str = ""

    def add(
        self, name: str, value: float, unit: str, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """Note a figure."""
        self.figures.append(Figure(name, value, unit, at_most, at_least))

    @property
    def failed(self) -> bool:
        """Whether it could not be measured, or misses a target."""
        return bool(self.error) or any(figure.met is False for figure in self.figures)


def show(result: Result, console: Console) -> None:
    """Print one benchmark's figures."""
    title = f"{result.benchmark} ({result.seconds:.0f} s, {result.busy_cores:.1f} cores busy)"
    table = Table("FIGURE", "VALUE", "UNIT", "TARGET", title=title, box=None, padding=(0, 2, 0, 0))
    table.title_justify, table.title_style = "left", "bold"
    for figure in result.figures:
        verdict = "" if figure.met is None else (" met" if figure.met else " MISSED")
        table.add_row(figure.name, _number(figure.value), figure.unit, figure.target + verdict)
    if result.figures:
        console.print(table)
    if result.error:
        console.print(f"[bold]{result.benchmark}[/] failed: ", end="")
        console.print(result.error, markup=False)
    console.print(result.how, style="dim", markup=False)
    console.print()


def write(results: Sequence[Result], machine: dict[str, Any], destination: Path) -> None:
    """Write everything as JSON; results of other benchmarks in an earlier file of the same machine are kept."""
    merged = {each["benchmark"]: each for each in _earlier(destination, machine)}
    for result in results:
        targets = {figure.name: figure.met for figure in result.figures if figure.met is not None}
        merged[result.benchmark] = {**asdict(result), "targets_met": targets, "machine": machine}
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_suffix(".partial")
    partial.write_text(json.dumps({"results": list(merged.values())}, indent=2, ensure_ascii=False) + "\n")
    partial.replace(destination)


def _earlier(path: Path, machine: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    results: list[dict[str, Any]] = content.get("results", [])
    return [each for each in results if each.get("machine", {}).get("processor") == machine["processor"]]


def _number(value: float) -> str:
    if value != 0 and abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
