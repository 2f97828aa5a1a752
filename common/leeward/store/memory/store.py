"""The durable store in memory, passing the same contract suite as etcd."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from itertools import islice

from leeward.clock import Clock
from leeward.errors import InvalidArgument, LeaseNotFound, StoreUnavailable
from leeward.store.limits import check_transaction
from leeward.store.memory.keys import VersionedKeys
from leeward.store.memory.lease import Lease
from leeward.store.memory.watch import MemoryWatch
from leeward.store.port import (
    Change,
    Condition,
    CreateRevisionIs,
    Delete,
    KeyValue,
    Mutation,
    Put,
    Range,
    Transaction,
    WatchBatch,
)

_BOOKMARK_EVERY_S = 2.0


class MemoryStore:
    """`leeward.store.port.Store` in one process, on the given clock.

    Deterministic: no call suspends, revisions and lease ids count up, leases end at the very moment they are due on
    `clock`, and watches are woken in the order in which they began. Nothing outlives the process.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys = VersionedKeys()
        self._leases: dict[int, Lease] = {}
        self._last_lease_id = 0
        self._watches: dict[MemoryWatch, None] = {}
        self._bookmarks: asyncio.Task[None] | None = None
        self._closed = False

    async def get(self, key: str) -> KeyValue | None:
        self._check_open()
        change = self._keys.get(key)
        return None if change is None else _key_value(change)

    async def list(
        self, prefix: str, *, limit: int = 0, start_after: str = "", revision: int = 0, keys_only: bool = False
    ) -> Range:
        self._check_open()
        revision = revision or self._keys.revision
        self._keys.check_readable(revision)
        found = self._keys.below(prefix, start_after=start_after, revision=revision)
        items = tuple(_key_value(change, keys_only=keys_only) for change in islice(found, limit or None))
        return Range(items, revision, more=next(found, None) is not None)

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        self._check_open()
        check_transaction(conditions, mutations)
        if not all(self._holds(condition) for condition in conditions):
            return Transaction(False, self._keys.revision)
        for mutation in mutations:
            if isinstance(mutation, Put) and mutation.lease_id:
                self._living_lease(mutation.lease_id)
        self._commit(mutations)
        return Transaction(True, self._keys.revision)

    def watch(self, prefix: str, *, from_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return self._watch(prefix, from_revision)

    async def grant_lease(self, ttl_s: int) -> int:
        self._check_open()
        if ttl_s <= 0:
            raise InvalidArgument.field("ttl_s", f"{ttl_s} is not more than 0")
        self._last_lease_id += 1
        lease = Lease(self._last_lease_id, ttl_s, self._clock.monotonic_s() + ttl_s)
        self._leases[lease.lease_id] = lease
        # In no caller's context: it is the store that ends a lease, whatever becomes of its holder.
        lease.expiry = asyncio.create_task(self._expire(lease), context=Context())
        return lease.lease_id

    async def keep_alive(self, lease_id: int, *, deadline_s: float = 1.0) -> float:
        self._check_open()
        lease = self._living_lease(lease_id)
        lease.expires_at = self._clock.monotonic_s() + lease.ttl_s
        return float(lease.ttl_s)

    async def revoke_lease(self, lease_id: int) -> None:
        self._check_open()
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._end_lease(lease)
            if lease.expiry is not None:
                lease.expiry.cancel()

    async def compact(self, revision: int) -> None:
        self._check_open()
        if self._keys.compacted < revision <= self._keys.revision:
            for watch in self._watches:
                watch.before_compaction(revision)
        self._keys.compact(revision)

    async def close(self) -> None:
        self._closed = True
        for watch in self._watches:
            watch.stop()
        tasks = [lease.expiry for lease in self._leases.values() if lease.expiry is not None]
        if self._bookmarks is not None:
            tasks.append(self._bookmarks)
            self._bookmarks = None
        self._leases.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def _watch(self, prefix: str, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        self._check_open()
        watch = MemoryWatch(self._keys, prefix, from_revision=from_revision)
        self._watches[watch] = None
        if self._bookmarks is None:
            self._bookmarks = asyncio.create_task(self._bookmark_for_ever(), context=Context())
        try:
            yield watch
        finally:
            watch.stop()
            del self._watches[watch]
            if not self._watches and self._bookmarks is not None:
                self._bookmarks.cancel()
                self._bookmarks = None

    async def _bookmark_for_ever(self) -> None:
        while True:
            await self._clock.sleep(_BOOKMARK_EVERY_S)
            for watch in self._watches:
                watch.bookmark()

    def _holds(self, condition: Condition) -> bool:
        change = self._keys.get(condition.key)
        if change is None:
            return condition.revision == 0
        if isinstance(condition, CreateRevisionIs):
            return change.create_revision == condition.revision
        return change.mod_revision == condition.revision

    def _commit(self, mutations: Iterable[Mutation]) -> None:
        for mutation in mutations:
            old = self._keys.get(mutation.key)
            if old is not None and (holder := self._leases.get(old.lease_id)):
                holder.keys.pop(mutation.key, None)
            if isinstance(mutation, Put) and mutation.lease_id:
                self._leases[mutation.lease_id].keys[mutation.key] = None
        changed = [change.key for change in self._keys.commit(mutations)]
        if changed:
            for watch in self._watches:
                watch.notify(changed)

    def _living_lease(self, lease_id: int) -> Lease:
        lease = self._leases.get(lease_id)
        # At the very moment of expiry, this may run before the task that ends the lease.
        if lease is None or lease.expires_at <= self._clock.monotonic_s():
            raise LeaseNotFound(f"lease {lease_id:x} has ended")
        return lease

    async def _expire(self, lease: Lease) -> None:
        while (left_s := lease.expires_at - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(left_s)
        self._end_lease(lease)

    def _end_lease(self, lease: Lease) -> None:
        del self._leases[lease.lease_id]
        self._commit([Delete(key) for key in sorted(lease.keys)])

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


def _key_value(change: Change, *, keys_only: bool = False) -> KeyValue:
    value = b"" if keys_only or change.value is None else change.value
    return KeyValue(change.key, value, change.create_revision, change.mod_revision, change.lease_id)
