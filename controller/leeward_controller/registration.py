"""Keys that stand for this replica: each under a lease of its own, renewed while the process lives.

`HeldKey` keeps one key under a lease and tells when it is gained and lost. A replica's registration and the leader's
key are both held keys. The holder counts its lease from the moment a renewal was *sent*, so it gives up before the
store would let anybody else have the key.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from leeward.clock import Clock
from leeward.errors import Conflict, LeaseNotFound, StoreIndefinite, StoreUnavailable
from leeward_controller.records import Commit, Records

log = structlog.get_logger()


class HeldKey:
    """Holds one key while it can; gains it again after a loss.

    `value` makes what is written; `gained(create_revision)` and `lost()` are called in turn, never at the same time.
    """

    def __init__(
        self,
        *,
        key: str,
        value: Callable[[], object],
        ttl_s: int,
        records: Records,
        clock: Clock,
        gained: Callable[[int], Awaitable[None]],
        lost: Callable[[], Awaitable[None]],
        wait_until_free: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._records = records
        self._clock = clock
        self._gained = gained
        self._lost = lost
        self._wait_until_free = wait_until_free
        self._lease_id = 0

    def abandon(self) -> None:
        """Leave the key to its lease, as a killed process does."""
        self._lease_id = 0

    async def run(self) -> None:
        """Hold the key until cancelled; then give it up at once."""
        try:
            while True:
                revision, sent_s = await self._acquire()
                await self._gained(revision)
                try:
                    await self._keep(sent_s)
                finally:
                    await self._lost()
                log.warning("held_key.lost", key=self._key)
        finally:
            await self._give_up()

    async def _acquire(self) -> tuple[int, float]:
        while True:
            if self._wait_until_free is not None:
                await self._wait_until_free()
            try:
                sent_s = self._clock.monotonic_s()
                self._lease_id = await self._records.store.grant_lease(self._ttl_s)
                commit = Commit().create(self._key, self._value(), lease_id=self._lease_id)
                return await self._records.commit(commit), sent_s
            except Conflict:
                await self._give_up()
            except (StoreUnavailable, StoreIndefinite, LeaseNotFound) as error:
                log.info("held_key.not_acquired", key=self._key, error=error.message)
            await self._clock.sleep(0.5)

    async def _keep(self, sent_s: float) -> None:
        valid_until_s = sent_s + self._ttl_s
        while True:
            await self._clock.sleep(self._ttl_s / 5)
            sent_s = self._clock.monotonic_s()
            if sent_s >= valid_until_s:
                return
            try:
                await self._records.store.keep_alive(
                    self._lease_id, deadline_s=min(self._ttl_s / 4, valid_until_s - sent_s)
                )
            except LeaseNotFound:
                return
            except StoreUnavailable as error:
                log.info("held_key.renewal_failed", key=self._key, error=error.message)
                continue
            valid_until_s = sent_s + self._ttl_s

    async def _give_up(self) -> None:
        lease_id, self._lease_id = self._lease_id, 0
        if lease_id:
            # When the store does not answer, the lease ends by itself.
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._records.store.revoke_lease(lease_id)
