"""Live migrations away from this host, followed until their outcome is known."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import libvirt

from leeward.agent.types import GuestState, GuestStatus, MigrationPhase, MigrationProgress, StopCause
from leeward.clock import Clock
from leeward.errors import HypervisorError

POLL_INTERVAL_S = 0.1
REPORT_INTERVAL_S = 0.15
# How long libvirt may be unreachable, or busy with its end, before the outcome is given up as unknown.
OUTCOME_TIMEOUT_S = 60.0

Stats = dict[str, int]


@dataclass(frozen=True, slots=True)
class MigrationCalls:
    """What a migration asks of libvirt, for one guest. Each raises HypervisorError."""

    status: Callable[[], Awaitable[GuestStatus]]
    stats: Callable[[], Awaitable[Stats | None]]  # None when no migration job runs.
    abort: Callable[[], Awaitable[None]]
    final_stats: Callable[[], Awaitable[Stats]]  # Of the job that has ended; empty when not told.


class MigrationRun:
    """One migration: started by this driver, or found running after this agent was restarted.

    libvirtd carries a peer-to-peer migration through whether or not anybody waits for it, so what became of it is
    always concluded from the guest itself.
    """

    def __init__(self, uid: str, calls: MigrationCalls, *, clock: Clock, timeout_s: float) -> None:
        self._uid = uid
        self._calls = calls
        self._clock = clock
        self._timeout_s = timeout_s
        self._started_s = clock.monotonic_s()
        self._progress = MigrationProgress(MigrationPhase.PREPARING)
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
        """Abort it; again and again, until it has ended, because libvirt refuses while it is only being prepared."""
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
        while True:
            running = await self._poll()
            if running is None:
                running = (await self._status_soon()).migrating
            if not running:
                return await self._conclude("it was no longer running when looked at")
            await self._clock.sleep(POLL_INTERVAL_S)

    async def _poll(self) -> bool | None:
        """Look at the job: whether there is one, or None when libvirt cannot tell now."""
        if self._elapsed_ms() > 1000 * self._timeout_s:
            self._timed_out = True
        try:
            if self._cancelled or self._timed_out:
                await self._calls.abort()
            stats = await self._calls.stats()
        except HypervisorError as error:
            # The migration may go on all the same; its end, or the guest itself, will tell.
            self._progress = replace(self._progress, decision=f"libvirt cannot be asked: {error.message}")
            return None
        if stats is not None:
            self._progress = progress_of(stats)
        elif self._progress.phase is MigrationPhase.COPYING:
            self._progress = replace(self._progress, phase=MigrationPhase.SWITCHING)
        return stats is not None

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
            error = f"not done within {self._timeout_s:g} s: {error}"
        if status.state is GuestState.PAUSED:
            error += " (the guest is paused here)"
        return replace(last, phase=MigrationPhase.FAILED, error=error)

    async def _completed(self, last: MigrationProgress) -> MigrationProgress:
        # A migration that had ended before anybody looked left no statistics to wait for.
        final = await self._calls.final_stats() if last.memory_total_bytes else {}
        if final:
            last = replace(
                progress_of(final),
                elapsed_ms=last.elapsed_ms,
                downtime_ms=final.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, 0),
            )
        return replace(
            last, phase=MigrationPhase.COMPLETED, memory_remaining_bytes=0, remaining_ms=0, expected_downtime_ms=0
        )

    def _elapsed_ms(self) -> int:
        return int(1000 * (self._clock.monotonic_s() - self._started_s))


def progress_of(stats: Stats) -> MigrationProgress:
    """libvirt's job statistics as progress. While a job runs, its `downtime` is the expected one."""
    total = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_TOTAL, 0)
    remaining = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_REMAINING, 0)
    throughput = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_BPS, 0)
    page_bytes = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE, 0)
    throttle = stats.get(libvirt.VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE, 0)
    return MigrationProgress(
        phase=MigrationPhase.COPYING if total else MigrationPhase.PREPARING,
        elapsed_ms=stats.get(libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED, 0),
        memory_total_bytes=total,
        memory_processed_bytes=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_PROCESSED, 0),
        memory_remaining_bytes=remaining,
        dirty_rate_bytes_s=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE, 0) * page_bytes,
        throughput_bytes_s=throughput,
        iteration=stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_ITERATION, 0),
        remaining_ms=1000 * remaining // throughput if throughput else 0,
        expected_downtime_ms=stats.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, 0),
        decision=f"auto-converge: the guest's processors are slowed by {throttle} %" if throttle else "",
    )
