"""Live migrations that leave this host: one job a guest, followed by any number of callers."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

import structlog

from leeward.agent.types import (
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    StopCause,
)
from leeward.clock import Clock
from leeward.errors import AgentUnavailable, InternalError, LeewardError, WrongState
from leeward_agent.ports import Hypervisor, Peer, Routes
from leeward_agent.power import Power, in_memory

_log = structlog.get_logger(__name__)

_REMEMBERED = 256
_SETTLE_TIMEOUT_S = 30.0
_POLL_S = 0.25
_ENDS = frozenset({MigrationPhase.COMPLETED, MigrationPhase.FAILED, MigrationPhase.CANCELLED})


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """What is asked: the operation it is for, the guest, where to, and the bounds."""

    operation: str
    spec: GuestSpec
    destination: MigrationDestination
    limits: MigrationLimits


class MigrationJob:
    """One migration and what is known of it so far."""

    def __init__(self, operation: str, uid: str) -> None:
        self.operation = operation
        self.uid = uid
        self._latest = MigrationProgress(MigrationPhase.PREPARING)
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._latest.phase in _ENDS

    @property
    def latest(self) -> MigrationProgress:
        return self._latest

    def tell(self, progress: MigrationProgress) -> None:
        """Let all followers know."""
        self._latest = progress
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncGenerator[MigrationProgress, None]:
        """The latest progress, then each new one that the follower is quick enough for, up to the outcome."""
        while True:
            version, progress, changed = self._version, self._latest, self._changed
            yield progress
            if progress.phase in _ENDS:
                return
            if version == self._version:
                await changed.wait()

    async def end(self) -> MigrationProgress:
        """Wait for the outcome."""
        while not self.ended:
            await self._changed.wait()
        return self._latest


# The destination belongs to it, so that an operation may try another one after a failure.
_Key = tuple[str, str, str]


def _key(request: MigrationRequest) -> _Key:
    return request.spec.uid, request.operation, request.destination.node


class Migrations:
    """Starts and remembers migrations. One guest has at most one that runs."""

    def __init__(self, hypervisor: Hypervisor, power: Power, routes: Routes, *, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._power = power
        self._routes = routes
        self._clock = clock
        self._jobs: OrderedDict[_Key, MigrationJob] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def running(self, uid: str) -> MigrationJob | None:
        """The guest's migration that has not ended."""
        return next((job for job in self._jobs.values() if job.uid == uid and not job.ended), None)

    async def begin(self, request: MigrationRequest) -> MigrationJob:
        """The job of this operation: the one it has already, or a new one.

        Raises WrongState when the guest is not in memory here and cannot have been moved by this operation, or when
        another operation is migrating it.
        """
        uid = request.spec.uid
        known = self._jobs.get(_key(request))
        if known is not None:
            return known
        other = self.running(uid)
        if other is not None:
            raise WrongState(f"guest {uid} is being migrated by {other.operation}")
        status = await self._hypervisor.get_guest(uid)
        job = MigrationJob(request.operation, uid)
        if in_memory(status):
            work = self._rejoin(job, request) if status.migrating else self._migrate(job, request, status)
        elif status.stop_cause is StopCause.MIGRATED or await self._is_there(request):
            # An earlier life of this agent moved it, or was asked to and never told.
            await self._power.forget(uid)
            job.tell(MigrationProgress(MigrationPhase.COMPLETED))
            self._remember(_key(request), job)
            return job
        else:
            raise WrongState(f"guest {uid} cannot be migrated: it is {status.state} on this host")
        self._remember(_key(request), job)
        task = asyncio.create_task(work)
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._task_ended(job, done))
        return job

    async def cancel(self, uid: str) -> None:
        """Ask the guest's migration to stop; no error when none runs."""
        await self._hypervisor.cancel_migration(uid)

    async def abandon(self, uid: str) -> None:
        """Cancel the guest's migration, if one runs, and wait for its outcome, which may still be COMPLETED."""
        job = self.running(uid)
        if job is not None:
            await self.cancel(uid)
            async with asyncio.timeout(_SETTLE_TIMEOUT_S * 2):
                await job.end()

    async def drain(self, timeout_s: float) -> None:
        """Wait for running migrations, at most `timeout_s`; then cancel those left, whose guests stay here."""
        if not self._tasks:
            return
        await asyncio.wait(self._tasks.values(), timeout=timeout_s)
        left = dict(self._tasks)
        for uid in left:
            await self.cancel(uid)
        if left:
            await asyncio.wait(left.values(), timeout=_SETTLE_TIMEOUT_S)

    async def _migrate(self, job: MigrationJob, request: MigrationRequest, before: GuestStatus) -> None:
        async with self._routes.open(
            operation=request.operation, uid=job.uid, destination=request.destination
        ) as route:
            await _check_destination(route.peer, request)
            moments = self._hypervisor.migrate(
                request.spec,
                destination=request.destination.node,
                transport=route.transport,
                limits=request.limits,
            )
            outcome = await self._follow(job, moments)
            job.tell(await self._settle(job.uid, route.peer, outcome, was=before.state))

    async def _rejoin(self, job: MigrationJob, request: MigrationRequest) -> None:
        """A migration that an earlier life of this agent began: follow it, then look who has the guest."""
        moments = self._hypervisor.follow_migration(job.uid, timeout_s=request.limits.timeout_s)
        outcome = await self._follow(job, moments)
        async with self._routes.open(
            operation=request.operation, uid=job.uid, destination=request.destination
        ) as route:
            job.tell(await self._settle(job.uid, route.peer, outcome, was=GuestState.RUNNING))

    async def _follow(self, job: MigrationJob, moments: AsyncIterator[MigrationProgress]) -> MigrationProgress:
        """Tell all but the outcome, which is answered."""
        progress = MigrationProgress(MigrationPhase.PREPARING)
        try:
            async for progress in moments:
                if progress.phase not in _ENDS:
                    job.tell(progress)
        except LeewardError as error:
            return replace(progress, phase=MigrationPhase.FAILED, error=error.message)
        if progress.phase not in _ENDS:
            return replace(progress, phase=MigrationPhase.FAILED, error="the hypervisor told no outcome")
        return progress

    async def _settle(self, uid: str, peer: Peer, outcome: MigrationProgress, *, was: GuestState) -> MigrationProgress:
        """The outcome after looking at both ends: what the hypervisor says can be wrong when a connection broke.

        Its promise: COMPLETED only when nothing is left here, and the guest never stays paused here while it is known
        that the destination does not have it.
        """
        status = await self._here(uid)
        if outcome.phase is MigrationPhase.COMPLETED:
            await self._power.forget(uid)
            return outcome
        if status.migrating:
            return replace(outcome, phase=MigrationPhase.FAILED, error=_unsettled(outcome, status, None))
        if status.state is GuestState.RUNNING:
            return outcome
        there = await self._ask(peer, uid)
        if there is not None and there.state is GuestState.RUNNING and not there.migrating:
            await self._power.forget(uid)
            return replace(
                outcome,
                phase=MigrationPhase.COMPLETED,
                error="",
                decision="the connection broke in the last step, and the guest was found running on the destination",
            )
        if there is not None and there.state is GuestState.STOPPED and there.run_epoch >= status.run_epoch:
            # It ran there and has ended since. The memory that is left here is older than its disk.
            await self._power.forget(uid)
            return replace(
                outcome, phase=MigrationPhase.COMPLETED, error="", decision="it arrived, and has ended since"
            )
        if there is not None and not in_memory(there) and status.state is GuestState.PAUSED:
            if was is GuestState.RUNNING:
                await self._hypervisor.resume(uid)
            return outcome
        return replace(outcome, phase=MigrationPhase.FAILED, error=_unsettled(outcome, status, there))

    async def _here(self, uid: str) -> GuestStatus:
        """The guest as this host has it, once it does not migrate any more, or as it is after a while."""
        deadline_s = self._clock.monotonic_s() + _SETTLE_TIMEOUT_S
        while (status := await self._hypervisor.get_guest(uid)).migrating:
            if self._clock.monotonic_s() >= deadline_s:
                break
            await self._clock.sleep(_POLL_S)
        return status

    async def _ask(self, peer: Peer, uid: str) -> GuestStatus | None:
        """The guest as the destination has it, or None when it does not answer, or does not settle, in time."""
        deadline_s = self._clock.monotonic_s() + _SETTLE_TIMEOUT_S
        while True:
            try:
                status = await peer.get_guest(uid=uid)
            except LeewardError as error:
                _log.warning("the destination of a migration does not answer", uid=uid, error=error.message)
            else:
                if not status.migrating and status.state is not GuestState.PAUSED:
                    return status
            if self._clock.monotonic_s() >= deadline_s:
                return None
            await self._clock.sleep(_POLL_S)

    async def _is_there(self, request: MigrationRequest) -> bool:
        try:
            async with self._routes.open(
                operation=request.operation, uid=request.spec.uid, destination=request.destination
            ) as route:
                status = await route.peer.get_guest(uid=request.spec.uid)
        except AgentUnavailable as error:
            _log.warning("the destination of a migration does not answer", uid=request.spec.uid, error=error.message)
            return False
        return status.state is GuestState.RUNNING and not status.migrating

    def _remember(self, key: _Key, job: MigrationJob) -> None:
        self._jobs[key] = job
        while len(self._jobs) > _REMEMBERED:
            oldest = next((key for key, each in self._jobs.items() if each.ended), None)
            if oldest is None:
                return
            del self._jobs[oldest]

    def _task_ended(self, job: MigrationJob, task: asyncio.Task[None]) -> None:
        if self._tasks.get(job.uid) is task:
            del self._tasks[job.uid]
        if job.ended:
            return
        error = None if task.cancelled() else task.exception()
        if not isinstance(error, LeewardError):
            _log.error("a migration ended unexpectedly", uid=job.uid, operation=job.operation, exc_info=error)
            error = InternalError(f"the migration of guest {job.uid} ended unexpectedly: {error!r}")
        job.tell(replace(job.latest, phase=MigrationPhase.FAILED, error=error.message))


async def _check_destination(peer: Peer, request: MigrationRequest) -> None:
    """Raises WrongState, in words, where the migration could only fail later and less clearly."""
    report = await peer.describe_node()
    uid, pool_id = request.spec.uid, request.spec.pool_id
    if report.node != request.destination.node:
        raise WrongState(f"the agent at {request.destination.address} is that of {report.node}")
    if request.destination.boot_id not in ("", report.boot_id):
        raise WrongState(f"{report.node} was rebooted, and the controllers do not know of it yet")
    if report.draining:
        raise WrongState(f"the agent of {report.node} is stopping")
    if not any(pool.pool_id == pool_id and pool.healthy for pool in report.pools):
        raise WrongState(f"{report.node} has no healthy access to pool {pool_id}, which holds the disk of guest {uid}")
    there = await peer.get_guest(uid=uid)
    if in_memory(there):
        raise WrongState(f"guest {uid} is {there.state} on {report.node} already")


def _unsettled(outcome: MigrationProgress, here: GuestStatus, there: GuestStatus | None) -> str:
    other = "is not known" if there is None else f"is {there.state}"
    return (
        f"{outcome.error or 'the migration broke off'}; the guest is {here.state} here and {other} on the destination"
    )
