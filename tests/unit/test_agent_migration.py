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
from leeward_agent.migration import MigrationRequest, Migrations
from leeward_agent.ports import Hypervisor, MigrationRoute, MigrationTransport
from leeward_agent.power import Power

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

    async def get_guest(self, uid: str) -> GuestStatus:
        return GuestStatus(uid, NAME, self.here)

    async def migrate(
        self, spec: GuestSpec, *, destination: str, transport: MigrationTransport, limits: MigrationLimits
    ) -> AsyncIterator[MigrationProgress]:
        yield MigrationProgress(MigrationPhase.SWITCHING)
        self.here, self.moved = self.after, True
        raise HypervisorError(self.error)

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
        pool = PoolReport("pool", PoolKind.DIRECTORY, 1, 1)
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
        nowhere = Path("/nonexistent")
        yield MigrationRoute(PeerOf(self._ends), MigrationTransport(nowhere, nowhere, nowhere))


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
    hypervisor = cast(Hypervisor, ends)
    clock = FastClock()
    migrations = Migrations(hypervisor, Power(hypervisor, clock=clock), RoutesOf(ends), clock=clock)
    job = await migrations.begin(REQUEST)
    outcome = await job.end()
    assert (outcome.phase, ends.done) == (phase, done), outcome
    assert (outcome.error == "") == (phase is MigrationPhase.COMPLETED)
