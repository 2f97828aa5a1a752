"""Live migration of a simulated guest: its disks, passes over its memory, a switch, and an outcome."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from leeward.agent.types import Escalation, GuestSpec, GuestState, MigrationLimits, MigrationPhase, MigrationProgress
from leeward.errors import FailedPrecondition, HypervisorError
from leeward_agent.escalation import DEFAULT_DOWNTIME_MS, Action, Decision, History, decide, moment_of
from leeward_agent.hypervisors.simulated.destination import Destination, OutcomeUnknown, Switch
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost

MIB = 1024 * 1024
# As QEMU's auto-converge, with the step that Leeward gives it: after every second pass in which more than half of what
# was copied was changed meanwhile.
_THROTTLE_STEP = 20
_MOST_THROTTLE = 99


@dataclass(slots=True)
class _Copy:
    """How far disks and memory are. `remaining_bytes` is of the memory."""

    disk_bytes: int
    total_bytes: int
    remaining_bytes: int
    disk_remaining_bytes: int
    processed_bytes: int = 0
    iteration: int = 1
    throttle: int = 0
    fast_passes: int = 0
    halted: bool = False


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
        self._was_paused = guest.state is GuestState.PAUSED
        self._started_s = host.clock.monotonic_s()
        rate_mib_s = min(limits.bandwidth_mib_s or host.timing.memory_mib_s, host.timing.memory_mib_s)
        self._rate_bytes_s = rate_mib_s * MIB
        disk_bytes = int(host.timing.written_mib * MIB) if limits.copies_disks else 0
        total = spec.memory_mib * MIB
        self._copy = _Copy(disk_bytes, total, remaining_bytes=total, disk_remaining_bytes=disk_bytes)
        self._history = History()
        self._taken = Decision(Action.COPY)
        self._progress = MigrationProgress(MigrationPhase.PREPARING)
        guest.outgoing = True
        self._task = host.spawn(self._mend() if guest.memory_follows else self._run())

    @property
    def running(self) -> bool:
        """Whether its outcome is still open."""
        return not self._task.done()

    def cancel(self) -> None:
        """Stop at the next step. Raises FailedPrecondition once the guest is being switched."""
        if self.running and self._progress.phase is MigrationPhase.SWITCHING:
            raise FailedPrecondition(
                f"the migration of guest {self._spec.uid} cannot be cancelled any more"
                f" (phase {MigrationPhase.SWITCHING}): {self._taken.words or 'it is being switched over'}",
                reason="MIGRATION_COMMITTED",
                metadata={"phase": MigrationPhase.SWITCHING.value},
            )
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
            await self._copy_disks()
            await self._copy_memory()
            return await self._switch()
        except HypervisorError as error:
            self._run_on()
            phase = MigrationPhase.CANCELLED if self._cancelled else MigrationPhase.FAILED
            return replace(self._progress, phase=phase, elapsed_ms=self._elapsed_ms(), error=error.message)
        finally:
            self._let_go()

    async def _mend(self) -> MigrationProgress:
        """Take a post-copy that broke up again."""
        self._taken = Decision(Action.POST_COPY, "post-copy: the destination fetches the rest of the memory")
        self._copy.remaining_bytes = self._guest.missing_bytes
        self._report(MigrationPhase.SWITCHING)
        try:
            await self._to.mend(self._spec.uid)
            return await self._fetch_rest(self._host.clock.monotonic_s())
        except HypervisorError as error:
            return self._broken(error)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._to.abandon()
        self._guest.outgoing = False
        if self._host.guests.get(self._spec.uid) is self._guest:
            self._host.tell(self._guest.status())

    def _run_on(self) -> None:
        """What was halted for the migration goes on."""
        guest, halted = self._guest, self._copy.halted and not self._was_paused
        if halted and guest.state is GuestState.PAUSED and guest.holds_disk:
            self._host.run(self._guest)

    async def _prepare(self) -> None:
        await self._host.clock.sleep(self._host.timing.prepare_s)
        self._may_go_on(MigrationPhase.PREPARING)
        await self._to.prepare(self._guest, self._spec)

    async def _copy_disks(self) -> None:
        copy = self._copy
        while copy.disk_remaining_bytes > 0:
            self._may_go_on(MigrationPhase.COPYING)
            size = await self._take_time(copy.disk_remaining_bytes)
            await self._to.receive_disk(size)
            copy.disk_remaining_bytes -= size
            self._report(MigrationPhase.COPYING)

    async def _copy_memory(self) -> None:
        """Pass after pass, until a stop is short enough, or a decision ends it."""
        copy = self._copy
        allowed_bytes = self._rate_bytes_s * (self._limits.max_downtime_ms or DEFAULT_DOWNTIME_MS) / 1000
        while True:
            began_s = self._host.clock.monotonic_s()
            await self._copy_pass()
            dirtied = self._dirtied(self._host.clock.monotonic_s() - began_s)
            copy.remaining_bytes = min(copy.remaining_bytes + dirtied, copy.total_bytes)
            copy.iteration += 1
            self._report(MigrationPhase.COPYING)
            if self._taken.action is Action.POST_COPY or copy.remaining_bytes <= allowed_bytes:
                return
            if self._taken.action is Action.PAUSE and not copy.halted:
                copy.halted = True
                self._host.pause(self._guest)
            self._throttle(pass_s=self._host.clock.monotonic_s() - began_s)

    async def _copy_pass(self) -> None:
        """Until all that was to copy is, or a decision ends it before that."""
        copy = self._copy
        while copy.remaining_bytes > 0 and (self._taken.action is Action.COPY or copy.halted):
            self._may_go_on(MigrationPhase.COPYING)
            size = await self._take_time(copy.remaining_bytes)
            await self._to.receive(size)
            copy.remaining_bytes -= size
            copy.processed_bytes += size
            self._report(MigrationPhase.COPYING)

    async def _take_time(self, left_bytes: int) -> int:
        """Wait as long as the next piece takes on the link; answers its size."""
        size = min(left_bytes, max(1, int(self._rate_bytes_s * self._host.timing.step_s)))
        await self._host.clock.sleep(size / self._rate_bytes_s)
        return size

    @property
    def _dirty_bytes_s(self) -> float:
        """How fast the guest changes its memory, slowed down as it is."""
        if self._guest.state is not GuestState.RUNNING:
            return 0.0
        mib_s = self._host.dirty_mib_s.get(self._spec.uid, self._host.timing.dirty_mib_s)
        return mib_s * MIB * (100 - self._copy.throttle) / 100

    def _dirtied(self, pass_s: float) -> int:
        return min(int(self._dirty_bytes_s * pass_s), self._copy.total_bytes)

    def _throttle(self, *, pass_s: float) -> None:
        copy = self._copy
        may = self._limits.escalation is not Escalation.NONE and not copy.halted
        if not may or copy.remaining_bytes < self._rate_bytes_s * pass_s / 2:
            return
        copy.fast_passes += 1
        if copy.fast_passes % 2 == 0:
            copy.throttle = min(copy.throttle + _THROTTLE_STEP, _MOST_THROTTLE)

    async def _switch(self) -> MigrationProgress:
        self._may_go_on(MigrationPhase.SWITCHING)
        post_copy = self._taken.action is Action.POST_COPY
        began_s = self._host.clock.monotonic_s()
        self._report(MigrationPhase.SWITCHING)
        self._host.hand_over(self._guest)
        record = self._host.traces.read_record(self._guest.boot_disk) if self._limits.copies_disks else None
        try:
            await self._host.clock.sleep(self._host.timing.switch_s)
            if not self._guest.active:
                raise HypervisorError("the guest was stopped on its source")
            await self._to.switch(Switch(paused=self._was_paused, record=record, memory_follows=post_copy))
        except OutcomeUnknown as error:
            # As QEMU's image lock would: it may execute there, so it must not here.
            raise HypervisorError(f"{error} (the guest is paused here)") from error
        except HypervisorError:
            if self._guest.active:
                self._host.run(self._guest, paused=self._was_paused)
            raise
        if not post_copy:
            return self._completed(began_s)
        self._guest.memory_follows = True
        try:
            return await self._fetch_rest(began_s)
        except HypervisorError as error:
            return self._broken(error)

    async def _fetch_rest(self, began_s: float) -> MigrationProgress:
        """Post-copy: the guest runs there, and its memory follows."""
        copy = self._copy
        while copy.remaining_bytes > 0:
            self._guest.missing_bytes = copy.remaining_bytes
            size = await self._take_time(copy.remaining_bytes)
            if not self._guest.active:
                raise HypervisorError("the half on the source was ended")
            await self._to.receive(size)
            copy.remaining_bytes -= size
            copy.processed_bytes += size
            self._report(MigrationPhase.SWITCHING)
        await self._to.finish()
        return self._completed(began_s)

    def _broken(self, error: HypervisorError) -> MigrationProgress:
        return replace(
            self._progress,
            phase=MigrationPhase.FAILED,
            elapsed_ms=self._elapsed_ms(),
            error=f"post-copy broke: {error.message}: each host holds a part of the guest's memory, and it can run on"
            " neither; end it on both, and start it from its disk",
        )

    def _completed(self, began_s: float) -> MigrationProgress:
        downtime_s = self._host.clock.monotonic_s() - began_s
        if self._taken.action is Action.POST_COPY:
            downtime_s = self._host.timing.switch_s
        self._host.remove(self._guest)
        return replace(
            self._progress,
            phase=MigrationPhase.COMPLETED,
            elapsed_ms=self._elapsed_ms(),
            memory_remaining_bytes=0,
            remaining_ms=0,
            expected_downtime_ms=0,
            downtime_ms=int(1000 * downtime_s),
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

    def _report(self, phase: MigrationPhase) -> None:
        copy = self._copy
        left_bytes = copy.remaining_bytes + copy.disk_remaining_bytes
        progress = MigrationProgress(
            phase=phase,
            memory_total_bytes=copy.total_bytes,
            memory_processed_bytes=copy.processed_bytes,
            memory_remaining_bytes=copy.remaining_bytes,
            dirty_rate_bytes_s=int(self._dirty_bytes_s),
            throughput_bytes_s=int(self._rate_bytes_s),
            iteration=copy.iteration,
            remaining_ms=int(1000 * left_bytes / self._rate_bytes_s),
            expected_downtime_ms=int(1000 * copy.remaining_bytes / self._rate_bytes_s),
            disk_total_bytes=copy.disk_bytes,
            disk_processed_bytes=copy.disk_bytes - copy.disk_remaining_bytes,
            disk_remaining_bytes=copy.disk_remaining_bytes,
        )
        if phase is MigrationPhase.COPYING and not copy.disk_remaining_bytes and self._taken.action is Action.COPY:
            self._history.add(moment_of(progress, at_s=self._elapsed_ms() / 1000, throttle=copy.throttle))
            self._taken = decide(self._history, self._limits)
        self._progress = replace(progress, decision=self._taken.words)

    def _elapsed_ms(self) -> int:
        return int(1000 * (self._host.clock.monotonic_s() - self._started_s))
