"""What the source's agent concludes when a migration broke in its last step and the hypervisor cannot know better."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from leeward.agent.types import (
    DiskFormat,
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    NodeReport,
    PoolKind,
    PoolReport,
)
from leeward.clock import SystemClock
from leeward.errors import AgentUnavailable, HypervisorError
from leeward_agent.migration import Migrations
from leeward_agent.migration_job import MigrationRequest
from leeward_agent.ports import FolderMove, Hypervisor, MigrationRoute, MigrationTransport
from leeward_agent.power import Power
from leeward_agent.storage.memory import MemoryPool, MemoryPoolContents

UID = "guest-one"
NAME = "projects/p/instances/one"
REQUEST = MigrationRequest(
    operation="operations/one",
    spec=GuestSpec(UID, NAME, 1, 64, 1, "pool", "0" * 64, DiskFormat.RAW, 1),
    destination=MigrationDestination("host-b", "host-b:1"),
    limits=MigrationLimits(),
)


class FastClock(SystemClock):
    """Time passes only by sleeping, and sleeping takes none."""

    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Ends:
    """Both ends, as a test arranges them: `after` is what the migration leaves at the source."""

    after: GuestState
    there: GuestState | None  # None: it does not answer.
    error: str = "connection reset"
    here: GuestState = GuestState.RUNNING
    done: list[str] = field(default_factory=list)
    moved: bool = False
    split_for: int = 0  # How many attempts find the guest in two halves.
    folders: FolderMove | None = None

    async def get_guest(self, uid: str) -> GuestStatus:
        return GuestStatus(uid, NAME, self.here)

    async def migrate(
        self,
        spec: GuestSpec,
        *,
        destination: str,
        transport: MigrationTransport,
        folders: FolderMove,
        limits: MigrationLimits,
    ) -> AsyncIterator[MigrationProgress]:
        yield MigrationProgress(MigrationPhase.SWITCHING)
        self.folders = folders
        if self.moved:
            self.done.append("mend")
            self.split_for -= 1
        self.here, self.moved = self.after, True
        if self.after is GuestState.ABSENT and not self.split_for:
            yield MigrationProgress(MigrationPhase.COMPLETED)
            return
        raise HypervisorError(self.error)

    async def is_split(self, uid: str) -> bool:
        return self.moved and self.split_for > 0 and self.here is not GuestState.STOPPED

    async def kill(self, uid: str) -> None:
        self.done.append("kill")
        self.here = GuestState.STOPPED

    async def undefine(self, uid: str) -> None:
        self.done.append("undefine")
        self.here = GuestState.ABSENT

    async def resume(self, uid: str) -> None:
        self.done.append("resume")
        self.here = GuestState.RUNNING


class PeerOf:
    """The destination's agent."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    async def describe_node(self) -> NodeReport:
        pool = PoolReport("pool", PoolKind.DIRECTORY, 1, 1, root="/srv/elsewhere")
        return NodeReport("host-b", "boot", "id", "host-b:1", 1, 1, (pool,), "qemu", "1", "1", True, 5.0, 1.0)

    async def get_guest(self, *, uid: str) -> GuestStatus:
        if not self._ends.moved:
            return GuestStatus(uid, "", GuestState.ABSENT)
        if self._ends.there is None:
            raise AgentUnavailable("host-b does not answer")
        return GuestStatus(uid, NAME, self._ends.there)


class RoutesOf:
    """The way to the destination."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    @asynccontextmanager
    async def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AsyncIterator[MigrationRoute]:
        yield MigrationRoute(PeerOf(self._ends), MigrationTransport(*[Path("/nonexistent")] * 5))


def migrations_of(ends: Ends) -> Migrations:
    hypervisor, clock = cast(Hypervisor, ends), FastClock()
    pool = MemoryPool(MemoryPoolContents("pool"), clock, node="host-a")
    power = Power(hypervisor, clock=clock)
    return Migrations(hypervisor, power, RoutesOf(ends), pools={"pool": pool}, mend_s=60.0, clock=clock)


@pytest.mark.parametrize(
    ("ends", "phase", "done"),
    [
        (Ends(after=GuestState.PAUSED, there=GuestState.RUNNING), MigrationPhase.COMPLETED, ["kill", "undefine"]),
        (Ends(after=GuestState.PAUSED, there=GuestState.ABSENT), MigrationPhase.FAILED, ["resume"]),
        (Ends(after=GuestState.PAUSED, there=None), MigrationPhase.FAILED, []),
        (Ends(after=GuestState.PAUSED, there=GuestState.PAUSED), MigrationPhase.FAILED, []),
        (Ends(after=GuestState.RUNNING, there=GuestState.ABSENT), MigrationPhase.FAILED, []),
        (Ends(after=GuestState.STOPPED, there=GuestState.RUNNING), MigrationPhase.COMPLETED, ["undefine"]),
        (Ends(after=GuestState.STOPPED, there=GuestState.ABSENT), MigrationPhase.FAILED, []),
    ],
)
async def test_the_guest_never_ends_up_running_twice_nor_needlessly_paused(
    ends: Ends, phase: MigrationPhase, done: list[str]
) -> None:
    ends = replace(ends, done=[])
    job = await migrations_of(ends).begin(REQUEST)
    outcome = await job.end()
    assert (outcome.phase, ends.done) == (phase, done), outcome
    assert (outcome.error == "") == (phase is MigrationPhase.COMPLETED)


async def test_a_post_copy_that_broke_is_taken_up_again() -> None:
    ends = Ends(after=GuestState.ABSENT, there=GuestState.RUNNING, split_for=3)
    job = await migrations_of(ends).begin(REQUEST)
    assert (await job.end()).phase is MigrationPhase.COMPLETED
    assert ends.done == ["mend"] * 3


async def test_a_post_copy_that_cannot_be_mended_ends_this_half_and_says_so() -> None:
    ends = Ends(after=GuestState.PAUSED, there=None, split_for=1000)
    job = await migrations_of(ends).begin(REQUEST)
    outcome = await job.end()
    assert outcome.phase is MigrationPhase.FAILED
    assert "not mended within 60 s" in outcome.error
    assert "is STOPPED here" in outcome.error
    assert ends.done[-1] == "kill"
    assert ends.here is GuestState.STOPPED


async def test_the_guests_folder_is_where_the_destination_has_the_pool() -> None:
    ends = Ends(after=GuestState.RUNNING, there=GuestState.ABSENT)
    await (await migrations_of(ends).begin(REQUEST)).end()
    folder = Path("instances") / UID
    assert ends.folders == FolderMove(here=Path("/simulated/pool") / folder, there=Path("/srv/elsewhere") / folder)


@pytest.mark.parametrize("target", ["pool", "other", ""])
async def test_disks_are_copied_only_into_another_pool_of_the_destination(target: str) -> None:
    ends = Ends(after=GuestState.RUNNING, there=GuestState.ABSENT)
    request = replace(REQUEST, limits=MigrationLimits(copies_disks=True, target_pool_id=target))
    outcome = await (await migrations_of(ends).begin(request)).end()
    assert outcome.phase is MigrationPhase.FAILED
    assert ("copied onto themselves" if target == "pool" else "no healthy access") in outcome.error
    assert not ends.moved
