"""Live progress bars for terminals."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from leeward.cli.describe import seconds_of
from leeward.cli.names import short
from leeward.cli.operation_text import drain_text, end_text, migration_text, move_text, percent_of, title_of
from leeward.cli.units import duration_text
from leeward.client import images
from leeward.v1.operation_pb2 import InstanceMove, MovePhase, OperationMetadata
from leeward.v1.operation_service_pb2 import WatchOperationResponse

_REFRESH_HZ = 10
_DONE_STYLE = {True: ("✓", "green"), False: ("✗", "red")}


class _Bars(Progress):
    """Bars with a line of details below."""

    def __init__(self, console: Console) -> None:
        self.details: dict[str, str] = {}
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}", style="dim", markup=False),
            console=console,
            refresh_per_second=_REFRESH_HZ,
            transient=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for detail in self.details.values():
            yield Text(f"  {detail}", style="dim")


class OperationBars:
    """A bar an operation; steps and ends stay on the screen as lines above the bars."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = _Bars(self._console)
        self._tasks: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}
        self._moves: dict[str, str] = {}
        self._bars.start()

    def update(self, response: WatchOperationResponse) -> None:
        """Show this moment of an operation."""
        name, metadata = response.operation.name, response.metadata
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(title_of(metadata), total=100, step="")
        self._print_steps(name, metadata)
        for move in metadata.drain.moves:
            self._show_move(f"{name} {move.instance}", move)
        if response.operation.done:
            self._end(name, response)
            return
        step = metadata.step if not metadata.target_node else f"{metadata.step} → {short(metadata.target_node)}"
        if metadata.HasField("drain"):
            step = drain_text(metadata)
        self._bars.update(self._tasks[name], completed=percent_of(metadata), step=metadata.note or step)
        if metadata.HasField("migration"):
            self._bars.details[name] = migration_text(metadata.migration)

    def close(self) -> None:
        """Take the bars away; the lines above them stay."""
        self._bars.stop()

    def _print_steps(self, name: str, metadata: OperationMetadata) -> None:
        """The steps taken since the last moment. When there are fewer than before, they are of an undoing."""
        shown = min(self._steps.get(name, 0), len(metadata.steps))
        for step in metadata.steps[shown:]:
            took = duration_text(seconds_of(step.duration))
            outcome = f"  {step.outcome}" if step.outcome not in ("", "done") else ""
            self._console.print(Text(f"  · {title_of(metadata)}: {step.step}  {took}{outcome}", style="dim"))
        self._steps[name] = len(metadata.steps)

    def _show_move(self, key: str, move: InstanceMove) -> None:
        """A bar of its own while an instance is being moved; what came of it stays as a line."""
        if move.phase == MovePhase.MOVE_PHASE_MOVING:
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(f"  {short(move.instance)}", total=100, step="")
            to = f"→ {short(move.target_node)}" if move.target_node else ""
            self._bars.update(self._tasks[key], completed=move.percent, step=to)
            return
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
        story = move_text(move)
        if story and self._moves.get(key) != story:
            self._moves[key] = story
            style = "red" if move.phase == MovePhase.MOVE_PHASE_FAILED else "dim"
            self._console.print(Text(f"  · {story}", style=style))

    def _end(self, name: str, response: WatchOperationResponse) -> None:
        mark, style = _DONE_STYLE[response.operation.WhichOneof("result") != "error"]
        self._bars.details.pop(name, None)
        for key in [each for each in self._tasks if each == name or each.startswith(f"{name} ")]:
            self._bars.remove_task(self._tasks.pop(key))
        self._console.print(Text(f"{mark} {title_of(response.metadata)}: {end_text(response.metadata)}", style=style))


@contextmanager
def byte_bar(title: str) -> Iterator[images.Progress]:
    """A bar of bytes with speed and time left."""
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        refresh_per_second=_REFRESH_HZ,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done_bytes: int, total_bytes: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bars.update(task, visible=False)
            tasks[stage] = bars.add_task(f"{stage} {title}", total=total_bytes)
        bars.update(tasks[stage], completed=done_bytes, total=total_bytes)

    with bars:
        yield show
