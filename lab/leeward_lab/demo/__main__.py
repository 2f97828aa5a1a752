"""`python -m leeward_lab.demo`: play the story, end with one line that a machine can read."""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from leeward.errors import LeewardError
from leeward.logs import set_up_logs
from leeward_lab.demo.stage import Stage
from leeward_lab.demo.story import Story, Untrue
from leeward_lab.guest.commands import LabError


def main() -> None:
    """Exit with 0 and the closing line, or with 1 and what did not hold."""
    parser = argparse.ArgumentParser(prog="python -m leeward_lab.demo", description="Leeward's main job, shown.")
    parser.add_argument("--hypervisor", choices=("qemu", "simulated"), default="qemu")
    parser.add_argument("--keep", action="store_true", help="leave disks and logs where they are")
    options = parser.parse_args()
    set_up_logs(level="error")
    console = Console(highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="leeward-demo-"))
    begun = time.monotonic()
    try:
        line = asyncio.run(_interruptible(_play(options.hypervisor, directory, console)))
    except (LabError, LeewardError, TimeoutError, Untrue) as error:
        console.print(f"\n[red]It failed after {time.monotonic() - begun:.1f} s: {error}")
        _keep(directory, console)
        print("demo: failed", flush=True)
        sys.exit(1)
    except asyncio.CancelledError:
        shutil.rmtree(directory)
        sys.exit(130)
    if options.keep:
        _keep(directory, console)
    else:
        shutil.rmtree(directory)
    console.print(f"\n[dim]{time.monotonic() - begun:.1f} s in all; nothing of it is left.")
    print(line, flush=True)


async def _interruptible(work: Coroutine[Any, Any, str]) -> str:
    """SIGTERM ends it as Ctrl-C does: with everything taken down."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


async def _play(hypervisor: str, directory: Path, console: Console) -> str:
    async with _stage(hypervisor, directory) as stage:
        figures = await Story(stage, console).play()
        return figures.line(stage.hypervisor)


def _stage(hypervisor: str, directory: Path) -> AbstractAsyncContextManager[Stage]:
    # Each needs what the other does not: the simulated one neither root nor the tools of real hosts.
    if hypervisor == "simulated":
        from leeward_lab.demo.simulated import simulated_stage

        return simulated_stage(directory)
    from leeward_lab.demo.real import real_stage

    return real_stage(directory)


def _keep(directory: Path, console: Console) -> None:
    console.print(f"[dim]disks and logs are in {directory}")


if __name__ == "__main__":
    main()
