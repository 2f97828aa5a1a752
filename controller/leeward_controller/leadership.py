"""One replica leads: it watches nodes and guests. Everything it writes as leader is bound to the leader's key."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from leeward import keys
from leeward.clock import Clock
from leeward_controller.domain.cluster import Controller
from leeward_controller.records import Records
from leeward_controller.registration import HeldKey
from leeward_controller.view import ClusterView

log = structlog.get_logger()

Duties = Callable[[int], Sequence[Callable[[], Awaitable[None]]]]


class Leadership:
    """Campaigns for the leader's key, and runs the duties while it holds it.

    `duties(epoch)` makes the jobs of one term; `epoch` is the key's create revision, which only grows. A job that
    fails is a defect, and ends `run`: half a leader would keep the key from a whole one.
    """

    def __init__(
        self,
        *,
        identity: Callable[[], Controller],
        ttl_s: int,
        records: Records,
        view: ClusterView,
        clock: Clock,
        duties: Duties,
    ) -> None:
        self.epoch = 0
        self._view = view
        self._clock = clock
        self._duties = duties
        self._jobs: list[asyncio.Task[None]] = []
        self._group = asyncio.TaskGroup()
        self._key = HeldKey(
            key=keys.LEADER,
            value=identity,
            ttl_s=ttl_s,
            records=records,
            clock=clock,
            gained=self._gained,
            lost=self._lost,
            wait_until_free=self._wait_until_free,
        )

    async def run(self) -> None:
        """Campaign and lead until cancelled."""
        async with self._group:
            await self._key.run()

    def abandon(self) -> None:
        """Leave the key to its lease, as a killed process does."""
        self._key.abandon()

    async def _wait_until_free(self) -> None:
        while not self._view.synced or self._view.leader is not None:
            await self._view.wait_for(lambda: self._view.synced and self._view.leader is None, timeout_s=1.0)

    async def _gained(self, epoch: int) -> None:
        self.epoch = epoch
        log.info("leader.gained", epoch=epoch)
        self._jobs = [self._group.create_task(_run(job)) for job in self._duties(epoch)]

    async def _lost(self) -> None:
        log.info("leader.lost", epoch=self.epoch)
        self.epoch = 0
        for job in self._jobs:
            job.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs)


async def _run(job: Callable[[], Awaitable[None]]) -> None:
    await job()
