"""Live migration of a simulated guest: iterations over its memory, a switch, and an outcome."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Protocol

from leeward.agent.types import GuestSpec, GuestState, MigrationLimits, MigrationPhase, MigrationProgress
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost

MIB = 1024 * 1024
# After this many iterations the guest is slowed down, as auto-converge does, so that every migration converges.
ITERATIONS_BEFORE_THROTTLE = 3
DEFAULT_DOWNTIME_MS = 300


class OutcomeUnknown(Exception):
    """The destination was told to run the guest, and did not answer."""


class Destination(Protocol):
    """The other end of a migration. `prepare`, `receive` and `switch` raise HypervisorError when it did not happen."""

    async def prepare(self, guest: SimulatedGuest, spec: GuestSpec) -> None:
        """Make the guest known there, not executing."""
        ...

    async def receive(self, size_bytes: int) -> None:
        """Take this much memory."""
        ...

    async def switch(self, *, paused: bool) -> None:
        """Let it execute there. Raises OutcomeUnknown when it cannot be told whether it does."""
        ...

    def abandon(self) -> None:
        """Let go of it: a guest that was not switched is forgotten there."""
        ...


class LocalDestination:
    """A host in the same process."""

    def __init__(self, host: SimulatedHost, *, source: str) -> None:
        self._host = host
        self._source = source
        self._boot = host.boot
        self._guest: SimulatedGuest | None = None

    async def prepare(self, guest: SimulatedGuest, spec: GuestSpec) -> None:
        """Make the guest known there, not executing."""
        arriving = replace(
            guest, spec=spec, state=GuestState.PAUSED, incoming=True, outgoing=False, holds_disk=False,
            paused_by_io_error=False,
        )  # fmt: skip
        self._host.receive(arriving)
        self._guest = arriving

    async def receive(self, size_bytes: int) -> None:
        """Take this much memory."""
        self._arriving()

    async def switch(self, *, paused: bool) -> None:
        """Let it execute there. Raises OutcomeUnknown when its answer is lost."""
        self._host.run(self._arriving(), paused=paused)
        if self._host.loses_switch_answer:
            raise OutcomeUnknown(f"the connection to host {self._host.node} broke in the last step")

    def abandon(self) -> None:
        """Forget a guest that was not switched."""
        if self._guest is not None and self._guest.incoming and self._host.powered:
            self._host.remove(self._guest)

    def _arriving(self) -> SimulatedGuest:
        guest = self._guest
        if not self._host.world.reaches(self._source, self._host.node):
            raise HypervisorError(f"the connection to host {self._host.node} broke")
        if guest is None or not self._host.powered or self._host.boot != self._boot or not guest.active:
            raise HypervisorError(f"host {self._host.node} lost the arriving guest")
        return guest


@dataclass(slots=True)
class _Copy:
    """How far the memory is."""

    total_bytes: int
    remaining_bytes: int
    processed_bytes: int = 0
    iteration: int = 1
    dirty_bytes_s: float = 0.0
    decision: str = ""


class SimulatedMigration:
    """One migration away from a host. It belongs to the host: it goes on when the agent dies, as libvirt's does."""

    def __init__(
        self, host: SimulatedHost, guest: SimulatedGuest, spec: GuestSpec, *, to: Destination, limits: MigrationLimits
    ) -> None:
        self._host = host
        self._guest = guest
        self._spec = spec
        self._to = to
        self._limits = limits
        self._cancelled = False
        self._started_s = host.clock.monotonic_s()
        rate_mib_s = min(limits.bandwidth_mib_s or host.timing.memory_mib_s, host.timing.memory_mib_s)
        self._rate_bytes_s = rate_mib_s * MIB
        self._progress = MigrationProgress(MigrationPhase.PREPARING)
        guest.outgoing = True
        self._task = host.spawn(self._run())

    @property
    def running(self) -> bool:
        """Whether its outcome is still open."""
        return not self._task.done()

    def cancel(self) -> None:
        """Stop at the next step, unless the guest has been switched by then."""
        self._cancelled = True

    async def reports(self) -> AsyncIterator[MigrationProgress]:
        """The progress until now and onwards; the last one is the outcome. Raises HypervisorError if unknown."""
        interval_s = min(self._host.timing.step_s, 0.2)
        while not self._task.done():
            yield replace(self._progress, elapsed_ms=self._elapsed_ms())
            await asyncio.wait([self._task], timeout=interval_s)
        if self._task.cancelled():
            raise HypervisorError(f"migrate guest {self._spec.uid}: the host lost power")
        yield self._task.result()

    async def _run(self) -> MigrationProgress:
        try:
            await self._prepare()
            await self._copy()
            return await self._switch()
        except HypervisorError as error:
            phase = MigrationPhase.CANCELLED if self._cancelled else MigrationPhase.FAILED
            return replace(self._progress, phase=phase, elapsed_ms=self._elapsed_ms(), error=error.message)
        finally:
            self._to.abandon()
            self._guest.outgoing = False
            if self._host.guests.get(self._spec.uid) is self._guest:
                self._host.tell(self._guest.status())

    async def _prepare(self) -> None:
        await self._host.clock.sleep(self._host.timing.prepare_s)
        self._may_go_on(MigrationPhase.PREPARING)
        await self._to.prepare(self._guest, self._spec)

    async def _copy(self) -> None:
        total = self._spec.memory_mib * MIB
        copy = _Copy(total_bytes=total, remaining_bytes=total, dirty_bytes_s=self._host.timing.dirty_mib_s * MIB)
        allowed_bytes = self._rate_bytes_s * (self._limits.max_downtime_ms or DEFAULT_DOWNTIME_MS) / 1000
        while True:
            began_s = self._host.clock.monotonic_s()
            await self._copy_iteration(copy)
            dirtied = int(copy.dirty_bytes_s * (self._host.clock.monotonic_s() - began_s))
            copy.remaining_bytes = min(dirtied, total)
            if copy.remaining_bytes <= allowed_bytes:
                self._report(copy)
                return
            copy.iteration += 1
            if copy.iteration > ITERATIONS_BEFORE_THROTTLE:
                copy.dirty_bytes_s /= 2
                copy.decision = "auto-converge: the guest's processors are slowed"

    async def _copy_iteration(self, copy: _Copy) -> None:
        step_s = self._host.timing.step_s
        while copy.remaining_bytes > 0:
            self._may_go_on(MigrationPhase.COPYING)
            size = min(copy.remaining_bytes, max(1, int(self._rate_bytes_s * step_s)))
            await self._host.clock.sleep(size / self._rate_bytes_s)
            await self._to.receive(size)
            copy.remaining_bytes -= size
            copy.processed_bytes += size
            self._report(copy)

    async def _switch(self) -> MigrationProgress:
        self._may_go_on(MigrationPhase.SWITCHING)
        was_paused = self._guest.state is GuestState.PAUSED
        began_s = self._host.clock.monotonic_s()
        self._progress = replace(self._progress, phase=MigrationPhase.SWITCHING)
        self._host.hand_over(self._guest)
        try:
            await self._host.clock.sleep(self._host.timing.switch_s)
            if not self._guest.active:
                raise HypervisorError("the guest was stopped on its source")
            await self._to.switch(paused=was_paused)
        except OutcomeUnknown as error:
            # As QEMU's image lock would: it may execute there, so it must not here.
            raise HypervisorError(f"{error} (the guest is paused here)") from error
        except HypervisorError:
            if self._guest.active:
                self._host.run(self._guest, paused=was_paused)
            raise
        downtime_ms = int(1000 * (self._host.clock.monotonic_s() - began_s))
        self._host.remove(self._guest)
        return replace(
            self._progress,
            phase=MigrationPhase.COMPLETED,
            elapsed_ms=self._elapsed_ms(),
            memory_remaining_bytes=0,
            remaining_ms=0,
            downtime_ms=downtime_ms,
        )

    def _may_go_on(self, phase: MigrationPhase) -> None:
        if self._cancelled:
            raise HypervisorError("cancelled by request")
        if self._elapsed_ms() > 1000 * self._limits.timeout_s:
            raise HypervisorError(f"not done within {self._limits.timeout_s:g} s")
        if not self._guest.active:
            raise HypervisorError(f"the guest stopped here ({self._guest.stop_cause})")
        if phase in self._host.migration_errors:
            raise HypervisorError(self._host.migration_errors[phase])

    def _report(self, copy: _Copy) -> None:
        self._progress = MigrationProgress(
            phase=MigrationPhase.COPYING,
            memory_total_bytes=copy.total_bytes,
            memory_processed_bytes=copy.processed_bytes,
            memory_remaining_bytes=copy.remaining_bytes,
            dirty_rate_bytes_s=int(copy.dirty_bytes_s),
            throughput_bytes_s=int(self._rate_bytes_s),
            iteration=copy.iteration,
            remaining_ms=int(1000 * copy.remaining_bytes / self._rate_bytes_s),
            expected_downtime_ms=self._limits.max_downtime_ms or DEFAULT_DOWNTIME_MS,
            decision=copy.decision,
        )

    def _elapsed_ms(self) -> int:
        return int(1000 * (self._host.clock.monotonic_s() - self._started_s))
