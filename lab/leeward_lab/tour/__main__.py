"""`python -m leeward_lab.tour`: on the cluster of `make up` when there is one, else on one of its own."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

from leeward.errors import LeewardError
from leeward.identity import Role
from leeward.logs import set_up_logs
from leeward_lab.guest.commands import LabError
from leeward_lab.playground import supply
from leeward_lab.real.cluster import RealCluster
from leeward_lab.real.layout import ADMIN
from leeward_lab.tour import disks, ending, moving, power
from leeward_lab.tour.cli import Cli
from leeward_lab.tour.guide import Guide, Stop
from leeward_lab.tour.untrue import Untrue

STOPS: tuple[Stop, ...] = (
    power.create,
    power.stop_and_start,
    power.reboot,
    power.pause,
    power.suspend,
    power.lock,
    power.console,
    power.crash_dump,
    disks.snapshot,
    disks.resize,
    disks.rescue,
    disks.rebuild,
    moving.migrate,
    moving.migrate_local,
    disks.shelve,
    disks.backup,
    moving.drain,
    moving.evacuate,
    ending.events,
    ending.delete,
    ending.audit,
)
_USER_DATA = "#cloud-config\nhostname: web-1\n"


def main() -> None:
    """Exit with 0 when every promise held, else with 1 and a list of those that did not."""
    parser = argparse.ArgumentParser(prog="python -m leeward_lab.tour", description=__doc__)
    parser.add_argument("--playground", type=Path, required=True, help="where `make up` keeps its cluster")
    options = parser.parse_args()
    set_up_logs(level="error")
    console = Console(highlight=False)
    begun_s = time.monotonic()
    try:
        guide = asyncio.run(_interruptible(options.playground.resolve() / "cluster", console))
    except (LabError, LeewardError, TimeoutError, Untrue) as error:
        sys.exit(f"tour: failed: {error}")
    except asyncio.CancelledError:
        sys.exit(130)
    for failure in guide.failures:
        console.print(f"[red]{failure}")
    outcome = "failed" if guide.failures else "ok"
    print(f"tour: {outcome} stops={guide.visits} failed={len(guide.failures)} seconds={time.monotonic() - begun_s:.0f}")
    sys.exit(1 if guide.failures else 0)


async def _interruptible(playground: Path, console: Console) -> Guide:
    """SIGTERM ends it as Ctrl-C does: with everything taken down that it brought up."""
    task = asyncio.ensure_future(_play(playground, console))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


async def _play(playground: Path, console: Console) -> Guide:
    async with _cluster(playground) as cluster:
        (cluster.lab.directory / "user-data").write_text(_USER_DATA)
        guide = Guide(
            cluster=cluster,
            admin=_cli(cluster, Role.ADMIN, ADMIN),
            alice=_cli(cluster, Role.CLIENT, "alice"),
            console=console,
        )
        guide.head()
        for stop in STOPS:
            await stop(guide)
        return guide


def _cli(cluster: RealCluster, role: Role, name: str) -> Cli:
    return Cli(
        endpoints=cluster.endpoints, tls_directory=cluster.certificate_directory(role, name), environment=os.environ
    )


@asynccontextmanager
async def _cluster(playground: Path) -> AsyncIterator[RealCluster]:
    """The cluster of `make up` if it is up; else one for this tour alone, of which nothing stays."""
    if await asyncio.to_thread(playground.exists):
        yield RealCluster.attach(playground)
        return
    directory = Path(tempfile.mkdtemp(prefix="leeward-tour-"))
    try:
        cluster = await supply(directory, "tour", detached=False)
        try:
            yield cluster
        finally:
            await cluster.destroy()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
