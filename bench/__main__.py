"""`python -m bench [--only NAME ...]`: measure, print a table, write JSON. Exit status 1 when a target is missed."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rich.console import Console

from bench import evacuation, guard_kill, idle, launch, machine, migration, power_cut, reads, small
from bench.plane import Plane, control_plane
from bench.processes import busy_seconds
from bench.report import Result, show, write
from leeward.errors import LeewardError
from leeward.logs import set_up_logs
from leeward_lab.guest.commands import LabError

RESULTS = Path(__file__).parent / "results/latest.json"

# In this order: each may leave instances behind for those after it, and the one that breaks a host comes last.
_ON_THE_PLANE: dict[str, tuple[Callable[[Plane], Awaitable[Result]], float]] = {
    "store": (small.measure_store, 60),
    "launch": (launch.measure, 120),
    "reads": (reads.measure, 120),
    "cli": (small.measure_cli, 120),
    "idle": (idle.measure, 180),
    "evacuation": (evacuation.measure, 240),
    "storm": (evacuation.measure_storm, 420),
}
_MIGRATION = "migration"
_MIGRATION_S = 360
_POWER_CUT = "power-cut"
_POWER_CUT_S = 900
_GUARD = "guard"
_GUARD_S = 120
_FAILURES = (LeewardError, LabError, TimeoutError, AssertionError, ExceptionGroup, OSError)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = (*_ON_THE_PLANE, _GUARD, _MIGRATION, _POWER_CUT)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=migration.PAIRS, help="pairs of migrations (default: %(default)s)")
    return parser.parse_args()


async def _timed(name: str, work: Awaitable[Result], *, within_s: float, console: Console) -> Result:
    began, busy_before_s = time.monotonic(), busy_seconds()
    try:
        async with asyncio.timeout(within_s):
            result = await work
    except _FAILURES as error:
        result = Result(name, "It could not be measured.", error=f"{type(error).__name__}: {_story(error)}")
    result.seconds = round(time.monotonic() - began, 1)
    result.busy_cores = round((busy_seconds() - busy_before_s) / max(0.1, result.seconds), 2)
    show(result, console)
    return result


def _story(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_story(each) for each in error.exceptions[:3])
    return getattr(error, "message", "") or str(error) or "it took too long"


async def _measure(wanted: list[str], *, pairs: int, directory: Path, console: Console) -> list[Result]:
    results = []
    if _GUARD in wanted:
        work = guard_kill.measure(directory / "guard")
        results.append(await _timed(_GUARD, work, within_s=_GUARD_S, console=console))
    on_hosts: dict[str, tuple[Callable[[], Awaitable[Result]], float]] = {
        _MIGRATION: (lambda: migration.measure(directory / "lab", pairs=pairs), _MIGRATION_S),
        _POWER_CUT: (lambda: power_cut.measure(directory / "power-cut"), _POWER_CUT_S),
    }
    for name, (measure, within_s) in on_hosts.items():
        if name not in wanted:
            continue
        if os.geteuid() == 0:
            results.append(await _timed(name, measure(), within_s=within_s, console=console))
        else:
            console.print(f"{name} is left out: hosts made of namespaces need root")
    on_the_plane = [name for name in _ON_THE_PLANE if name in wanted]
    if on_the_plane:
        async with _plane(directory / "plane", console) as plane:
            for name in on_the_plane:
                measure_plane, within_s = _ON_THE_PLANE[name]
                results.append(await _timed(name, measure_plane(plane), within_s=within_s, console=console))
    return results


@asynccontextmanager
async def _plane(directory: Path, console: Console) -> AsyncIterator[Plane]:
    await asyncio.to_thread(directory.mkdir)
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(control_plane(directory))
        console.print(f"control plane with {plane.layout.hosts} hosts ready after {time.monotonic() - began:.0f} s\n")
        yield plane


async def _main() -> int:
    arguments = _arguments()
    wanted = arguments.only or [_GUARD, _MIGRATION, *_ON_THE_PLANE, _POWER_CUT]
    console = Console()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    described = machine.describe()
    with tempfile.TemporaryDirectory(prefix="leeward-bench-", ignore_cleanup_errors=True) as directory:
        results = await _measure(wanted, pairs=arguments.pairs, directory=Path(directory), console=console)
    write(results, described, arguments.output)
    console.print(f"{machine.one_line(described)}\n{arguments.output}", style="dim", markup=False, highlight=False)
    return 1 if any(result.failed for result in results) else 0


def main() -> None:
    """Run it."""
    set_up_logs(level="error")
    with contextlib.suppress(asyncio.CancelledError):
        sys.exit(asyncio.run(_main()))
    sys.exit(130)


if __name__ == "__main__":
    main()
