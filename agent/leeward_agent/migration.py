"""Live migrations that leave this host: one job a guest, followed by any number of callers."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import structlog

from leeward.agent.types import (
    GuestState,
    GuestStatus,
    MigrationPhase,
    MigrationProgress,
    StopCause,
)
from leeward.clock import Clock
from leeward.errors import AgentUnavailable, FailedPrecondition, InternalError, LeewardError, WrongState
from leeward_agent.migration_destination import check_destination, folders_of
from leeward_agent.migration_job import ENDS, MigrationJob, MigrationRequest
from leeward_agent.migration_outcome import SETTLE_TIMEOUT_S, Outcomes
from leeward_agent.ports import FolderMove, Hypervisor, MigrationRoute, Routes
from leeward_agent.power import Power, in_memory
from leeward_agent.storage.port import Pool

_log = structlog.get_logger(__name__)

_REMEMBERED = 256
# How often a post-copy that broke is taken up again. Meanwhile the guest stands still, at the latest when it needs a
# page that has not arrived.
_MEND_INTERVAL_S = 1.0


# The destination belongs to it, so that an operation may try another one after a failure.
_Key = tuple[str, str, str]


def _key(request: MigrationRequest) -> _Key:
    return request.spec.uid, request.operation, request.destination.node


class Migrations:
    """Starts and remembers migrations. One guest has at most one that runs."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        power: Power,
        routes: Routes,
        *,
        pools: Mapping[str, Pool],
        mend_s: float,
        clock: Clock,
    ) -> None:
        """`mend_s`: for how long a post-copy that broke is taken up again before its guest is given up."""
        self._hypervisor = hypervisor
        self._power = power
        self._routes = routes
        self._pools = pools
        self._mend_s = mend_s
        self._clock = clock
        self._outcomes = Outcomes(hypervisor, power, clock=clock)
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
        """Ask the guest's migration to stop; no error when none runs. Raises FailedPrecondition when it is too late."""
        await self._hypervisor.cancel_migration(uid)

    async def abandon(self, uid: str) -> None:
        """End the guest's migration, if one runs: cancel it, or wait for it where that is too late.

        Afterwards it has ended, or has not within a while; whoever kills the guest then ends it too. The guest may have
        arrived all the same.
        """
        job = self.running(uid)
        if job is None:
            return
        try:
            await self.cancel(uid)
        except FailedPrecondition as error:
            _log.info("a migration is waited for", uid=uid, reason=error.message)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await job.end()
        except TimeoutError:
            _log.warning("a migration does not end", uid=uid, operation=job.operation)

    async def drain(self, timeout_s: float) -> None:
        """Wait for running migrations, at most `timeout_s`; then cancel those left, whose guests stay here."""
        if not self._tasks:
            return
        await asyncio.wait(self._tasks.values(), timeout=timeout_s)
        left = dict(self._tasks)
        for uid in left:
            try:
                await self.cancel(uid)
            except FailedPrecondition as error:
                _log.info("a migration is waited for", uid=uid, reason=error.message)
        if left:
            await asyncio.wait(left.values(), timeout=SETTLE_TIMEOUT_S)

    async def end_at_once(self) -> None:
        """Let go of all that is followed; the hypervisor goes on with it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _migrate(self, job: MigrationJob, request: MigrationRequest, before: GuestStatus) -> None:
        async with self._routes.open(
            operation=request.operation, uid=job.uid, destination=request.destination
        ) as route:
            report = await check_destination(route.peer, request)
            folders = folders_of(self._pool(request), report, request)
            outcome = await self._follow(job, self._begin(request, route, folders))
            outcome = await self._mend(job, request, route, outcome)
            job.tell(await self._outcomes.settle(job.uid, route.peer, outcome, was=before.state))

    async def _rejoin(self, job: MigrationJob, request: MigrationRequest) -> None:
        """A migration that an earlier life of this agent began: follow it, then look who has the guest."""
        moments = self._hypervisor.follow_migration(job.uid, limits=request.limits)
        outcome = await self._follow(job, moments)
        async with self._routes.open(
            operation=request.operation, uid=job.uid, destination=request.destination
        ) as route:
            outcome = await self._mend(job, request, route, outcome)
            job.tell(await self._outcomes.settle(job.uid, route.peer, outcome, was=GuestState.RUNNING))

    def _begin(
        self, request: MigrationRequest, route: MigrationRoute, folders: FolderMove
    ) -> AsyncIterator[MigrationProgress]:
        return self._hypervisor.migrate(
            request.spec,
            destination=request.destination.node,
            transport=route.transport,
            folders=folders,
            limits=request.limits,
        )

    async def _mend(
        self, job: MigrationJob, request: MigrationRequest, route: MigrationRoute, outcome: MigrationProgress
    ) -> MigrationProgress:
        """Take a post-copy that broke up again, as long as both halves may still be there.

        When that fails, this half is ended: the guest can run on neither host any more, and only its disk is left.
        """
        give_up_s = self._clock.monotonic_s() + self._mend_s
        while outcome.phase is MigrationPhase.FAILED and await self._hypervisor.is_split(job.uid):
            if self._clock.monotonic_s() >= give_up_s:
                await self._power.kill(job.uid)
                error = f"{outcome.error}; not mended within {self._mend_s:g} s, and ended here"
                return replace(outcome, error=error)
            _log.warning("post-copy broke, and is taken up again", uid=job.uid, error=outcome.error)
            words = f"post-copy broke, and is taken up again: {outcome.error}"
            job.tell(replace(outcome, phase=MigrationPhase.SWITCHING, decision=words, error=""))
            await self._clock.sleep(_MEND_INTERVAL_S)
            try:
                report = await route.peer.describe_node()
            except LeewardError as error:
                _log.warning("the destination of a migration does not answer", uid=job.uid, error=error.message)
                continue
            folders = folders_of(self._pool(request), report, request)
            outcome = await self._follow(job, self._begin(request, route, folders))
        return outcome

    def _pool(self, request: MigrationRequest) -> Pool:
        """Where the guest's disks are on this host. Raises WrongState."""
        pool = self._pools.get(request.spec.pool_id)
        if pool is None:
            raise WrongState(f"pool {request.spec.pool_id} of guest {request.spec.uid} is not on this host")
        return pool

    async def _follow(self, job: MigrationJob, moments: AsyncIterator[MigrationProgress]) -> MigrationProgress:
        """Tell all but the outcome, which is answered."""
        progress = MigrationProgress(MigrationPhase.PREPARING)
        try:
            async for progress in moments:
                if progress.phase not in ENDS:
                    job.tell(progress)
        except LeewardError as error:
            return replace(progress, phase=MigrationPhase.FAILED, error=error.message)
        if progress.phase not in ENDS:
            return replace(progress, phase=MigrationPhase.FAILED, error="the hypervisor told no outcome")
        return progress

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
        if task.cancelled():
            told = f"the agent of its source stopped in the middle of the migration of guest {job.uid}"
            job.tell(replace(job.latest, phase=MigrationPhase.FAILED, error=told))
            return
        error = task.exception()
        if not isinstance(error, LeewardError):
            _log.error("a migration ended unexpectedly", uid=job.uid, operation=job.operation, exc_info=error)
            error = InternalError(f"the migration of guest {job.uid} ended unexpectedly: {error!r}")
        job.tell(replace(job.latest, phase=MigrationPhase.FAILED, error=error.message))
