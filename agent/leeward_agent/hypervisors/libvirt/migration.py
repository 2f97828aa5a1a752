"""Live migrations away from this host, followed until their outcome is known."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import libvirt

from leeward.agent.types import GuestState, GuestStatus, MigrationLimits, MigrationPhase, MigrationProgress, StopCause
from leeward.clock import Clock
from leeward.errors import FailedPrecondition, HypervisorError
from leeward_agent.escalation import Action, Decision, History, decide, moment_of
from leeward_agent.hypervisors.libvirt.status import PostCopy

POLL_INTERVAL_S = 0.1
REPORT_INTERVAL_S = 0.15
# How long libvirt may be unreachable, or busy with its end, before the outcome is given up as unknown.
OUTCOME_TIMEOUT_S = 60.0
# A step that libvirt refused is tried again after this.
_REFUSED_S = 2.0

Stats = dict[str, int]


@dataclass(frozen=True, slots=True)
class MigrationCalls:
    """What a migration asks of libvirt, for one guest. Each raises HypervisorError."""

    status: Callable[[], Awaitable[GuestStatus]]
    stats: Callable[[], Awaitable[Stats | None]]  # None when no migration job runs.
    abort: Callable[[], Awaitable[None]]
    start_post_copy: Callable[[], Awaitable[None]]
    halt: Callable[[], Awaitable[None]]
    post_copy: Callable[[], Awaitable[PostCopy]]
    final_stats: Callable[[], Awaitable[Stats]]  # Of the job that has ended; empty when not told.


class MigrationRun:
    """One migration: started by this driver, or found running after this agent was restarted.

    libvirtd carries a peer-to-peer migration through whether or not anybody waits for it, so what became of it is
    always concluded from the guest itself.
    """

    def __init__(self, uid: str, calls: MigrationCalls, *, clock: Clock, limits: MigrationLimits) -> None:
        self._uid = uid
        self._calls = calls
        self._clock = clock
        self._limits = limits
        self._started_s = clock.monotonic_s()
        self._progress = MigrationProgress(MigrationPhase.PREPARING)
        self._history = History()
        self._taken = Decision(Action.COPY)
        self._refused_until_s = 0.0
        self._cancelled = False
        self._timed_out = False
        self._task: asyncio.Task[MigrationProgress] | None = None

    @property
    def running(self) -> bool:
        """Whether its outcome is still open."""
        return self._task is not None and not self._task.done()

    def start(self, perform: Callable[[], Awaitable[None]]) -> None:
        """Begin: `perform` is libvirt's blocking call, which ends with the migration."""
        self._task = asyncio.get_running_loop().create_task(self._run(perform), name=f"migration-{self._uid}")

    def join(self) -> None:
        """Follow a migration that libvirtd is already running, or conclude what became of it."""
        self._task = asyncio.get_running_loop().create_task(self._follow(), name=f"migration-{self._uid}")

    def cancel(self) -> None:
        """Abort it; again and again, until it has ended, because libvirt refuses while it is only being prepared.

        Raises FailedPrecondition when it is too late.
        """
        if self._progress.phase is MigrationPhase.SWITCHING:
            raise too_late(self._uid, self._taken.words or "it is being switched over")
        self._cancelled = True

    def detach(self) -> None:
        """Stop following. The migration goes on."""
        if self._task is not None:
            self._task.cancel()

    async def reports(self) -> AsyncIterator[MigrationProgress]:
        """The progress until now and onwards; the last one is the outcome. Raises HypervisorError if unknown."""
        task = self._task
        if task is None:
            return
        while not task.done():
            yield replace(self._progress, elapsed_ms=self._elapsed_ms())
            await asyncio.wait([task], timeout=REPORT_INTERVAL_S)
        if task.cancelled():
            raise HypervisorError(f"migrate guest {self._uid}: no longer followed; libvirt carries it through")
        yield task.result()

    async def _run(self, perform: Callable[[], Awaitable[None]]) -> MigrationProgress:
        before = await self._calls.status()
        if before.state not in (GuestState.RUNNING, GuestState.PAUSED):
            raise HypervisorError(f"migrate guest {self._uid}: it does not run here, it is {before.state}")
        await self._find_post_copy()
        performing = asyncio.ensure_future(perform())
        try:
            while not performing.done():
                await self._poll()
                await asyncio.wait([performing], timeout=POLL_INTERVAL_S)
        finally:
            performing.cancel()
        error = performing.exception()
        if error is not None and not isinstance(error, HypervisorError):
            raise error
        return await self._conclude(error.message if error is not None else "")

    async def _follow(self) -> MigrationProgress:
        await self._find_post_copy()
        while True:
            running = await self._poll()
            if running is None:
                running = (await self._status_soon()).migrating
            if not running or (self._in_post_copy and await self._is_split()):
                return await self._conclude("it was no longer running when looked at")
            await self._clock.sleep(POLL_INTERVAL_S)

    async def _poll(self) -> bool | None:
        """Look at the job: whether there is one, or None when libvirt cannot tell now."""
        if self._elapsed_ms() > 1000 * self._limits.timeout_s and not self._in_post_copy:
            self._timed_out = True
        try:
            if self._cancelled or self._timed_out:
                await self._calls.abort()
            stats = await self._calls.stats()
            if stats is not None:
                await self._look(stats)
        except HypervisorError as error:
            # The migration may go on all the same; its end, or the guest itself, will tell.
            self._progress = replace(self._progress, decision=f"libvirt cannot be asked: {error.message}")
            return None
        if stats is None and self._progress.phase is MigrationPhase.COPYING and not self._copies_disks_only:
            self._progress = replace(self._progress, phase=MigrationPhase.SWITCHING)
        return stats is not None

    async def _look(self, stats: Stats) -> None:
        """Take the statistics into account, and the next step if one is due."""
        progress = progress_of(stats)
        if progress.memory_total_bytes:
            throttle = stats.get(libvirt.VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE, 0)
            self._history.add(moment_of(progress, at_s=self._elapsed_ms() / 1000, throttle=throttle))
        self._progress = self._shown(progress)
        if self._taken.action is Action.COPY and not (self._cancelled or self._timed_out):
            await self._escalate(decide(self._history, self._limits))
            self._progress = self._shown(progress)

    async def _escalate(self, decision: Decision) -> None:
        if decision.action is Action.COPY or self._clock.monotonic_s() >= self._refused_until_s:
            self._taken = decision
        if decision.action is Action.COPY or self._taken is not decision:
            return
        step = self._calls.start_post_copy if decision.action is Action.POST_COPY else self._calls.halt
        try:
            await step()
        except HypervisorError as error:
            self._taken = Decision(Action.COPY, f"{decision.words}; refused: {error.message}")
            self._refused_until_s = self._clock.monotonic_s() + _REFUSED_S

    def _shown(self, progress: MigrationProgress) -> MigrationProgress:
        phase = MigrationPhase.SWITCHING if self._in_post_copy else progress.phase
        return replace(progress, phase=phase, decision=self._taken.words)

    @property
    def _in_post_copy(self) -> bool:
        return self._taken.action is Action.POST_COPY

    @property
    def _copies_disks_only(self) -> bool:
        """Whether memory has not begun to be copied."""
        return not self._progress.memory_total_bytes

    async def _is_split(self) -> bool:
        """Whether post-copy broke; while libvirt cannot be asked it is not known to have."""
        try:
            return await self._calls.post_copy() is PostCopy.BROKEN
        except HypervisorError:
            return False

    async def _find_post_copy(self) -> None:
        """Notice that it was switched to post-copy before this run began."""
        try:
            found = await self._calls.post_copy()
        except HypervisorError:
            return
        if found is not PostCopy.NONE:
            self._taken = Decision(Action.POST_COPY, "post-copy: the destination fetches the rest of the memory")

    async def _status_soon(self) -> GuestStatus:
        """The guest, asked until libvirt answers. Raises HypervisorError after OUTCOME_TIMEOUT_S."""
        give_up_s = self._clock.monotonic_s() + OUTCOME_TIMEOUT_S
        while True:
            try:
                return await self._calls.status()
            except HypervisorError as error:
                if self._clock.monotonic_s() > give_up_s:
                    raise HypervisorError(
                        f"migrate guest {self._uid}: the outcome is not known: {error.message}"
                    ) from error
            await self._clock.sleep(POLL_INTERVAL_S)

    async def _conclude(self, error: str) -> MigrationProgress:
        give_up_s = self._clock.monotonic_s() + OUTCOME_TIMEOUT_S
        while (status := await self._status_soon()).migrating:
            if await self._is_split():
                return self._broken(error)
            if self._clock.monotonic_s() > give_up_s:
                raise HypervisorError(f"migrate guest {self._uid}: still being ended after {OUTCOME_TIMEOUT_S:g} s")
            await self._clock.sleep(POLL_INTERVAL_S)
        last = replace(self._progress, elapsed_ms=self._elapsed_ms())
        moved = status.state is GuestState.ABSENT or status.stop_cause is StopCause.MIGRATED
        if moved:
            return await self._completed(last)
        if status.state is GuestState.STOPPED:
            return replace(
                last, phase=MigrationPhase.FAILED, error=f"the guest stopped here ({status.stop_cause}): {error}"
            )
        if self._cancelled:
            return replace(last, phase=MigrationPhase.CANCELLED, error=error)
        if self._timed_out:
            error = f"not done within {self._limits.timeout_s:g} s: {error}"
        if status.state is GuestState.PAUSED:
            error += " (the guest is paused here)"
        return replace(last, phase=MigrationPhase.FAILED, error=error)

    def _broken(self, error: str) -> MigrationProgress:
        return replace(
            self._progress,
            phase=MigrationPhase.FAILED,
            elapsed_ms=self._elapsed_ms(),
            error=f"post-copy broke: {error}: each host holds a part of the guest's memory, and it can run on neither;"
            " end it on both, and start it from its disk",
        )

    async def _completed(self, last: MigrationProgress) -> MigrationProgress:
        # A migration that had ended before anybody looked left no statistics to wait for.
        final = await self._calls.final_stats() if last.memory_total_bytes else {}
        if final:
            last = replace(
                progress_of(final),
                elapsed_ms=last.elapsed_ms,
                decision=last.decision,
                downtime_ms=final.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, 0),
            )
        return replace(
            last,
            phase=MigrationPhase.COMPLETED,
            memory_remaining_bytes=0,
            disk_remaining_bytes=0,
            remaining_ms=0,
            expected_downtime_ms=0,
        )

    def _elapsed_ms(self) -> int:
        return int(1000 * (self._clock.monotonic_s() - self._started_s))


def too_late(uid: str, why: str) -> FailedPrecondition:
    """A migration that cannot be cancelled any more."""
    return FailedPrecondition(
        f"the migration of guest {uid} cannot be cancelled any more (phase {MigrationPhase.SWITCHING}): {why}",
        reason="MIGRATION_COMMITTED",
        metadata={"phase": MigrationPhase.SWITCHING.value},
    )


def progress_of(stats: Stats) -> MigrationProgress:
    """libvirt's job statistics as progress. While a job runs, its `downtime` is the expected one."""
    total = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_TOTAL, 0)
    remaining = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_REMAINING, 0)
    throughput = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_BPS, 0)
    page_bytes = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE, 0)
    disk_total = stats.get(libvirt.VIR_DOMAIN_JOB_DISK_TOTAL, 0)
    disk_remaining = stats.get(libvirt.VIR_DOMAIN_JOB_DISK_REMAINING, 0)
    disk_throughput = stats.get(libvirt.VIR_DOMAIN_JOB_DISK_BPS, 0)
    left_s = remaining / throughput if throughput else 0.0
    left_s += disk_remaining / disk_throughput if disk_throughput else 0.0
    return MigrationProgress(
        phase=MigrationPhase.COPYING if total or disk_total else MigrationPhase.PREPARING,
        elapsed_ms=stats.get(libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED, 0),
        memory_total_bytes=total,
        memory_processed_bytes=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_PROCESSED, 0),
        memory_remaining_bytes=remaining,
        dirty_rate_bytes_s=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE, 0) * page_bytes,
        throughput_bytes_s=throughput or disk_throughput,
        iteration=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_ITERATION, 0),
        remaining_ms=int(1000 * left_s),
        expected_downtime_ms=stats.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, 0),
        disk_total_bytes=disk_total,
        disk_processed_bytes=stats.get(libvirt.VIR_DOMAIN_JOB_DISK_PROCESSED, 0),
        disk_remaining_bytes=disk_remaining,
    )
