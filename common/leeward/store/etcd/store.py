"""The durable store on etcd 3.4 or later."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from leeward.clock import Clock
from leeward.store.etcd.kv import Keys
from leeward.store.etcd.lease import Leases
from leeward.store.etcd.members import Members
from leeward.store.etcd.tls import EtcdTls
from leeward.store.etcd.watch import Watch
from leeward.store.port import Condition, KeyValue, Mutation, Range, Transaction, WatchBatch


class EtcdStore:
    """`leeward.store.port.Store` on an etcd cluster.

    `endpoints` are `host:port` with a DNS name, an IPv4 address or an IPv6 address in brackets, one a member. Nothing
    is connected before the first call. Besides what the port says, every method raises PermissionDenied or
    Unauthenticated when etcd enforces rights and the certificate has not got them.

    Reads and renewals ask a second member while the first owes its answer; a write is sent to one member and, when it
    is certain that this one did not do it, to the next. Raises InvalidArgument for a malformed endpoint.
    """

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None, clock: Clock) -> None:
        self._clock = clock
        self._members = Members(endpoints, tls=tls, clock=clock)
        self._keys = Keys(self._members)
        self._leases = Leases(self._members)
        self._watches: set[Watch] = set()

    async def get(self, key: str) -> KeyValue | None:
        return await self._keys.get(key)

    async def list(
        self, prefix: str, *, limit: int = 0, start_after: str = "", revision: int = 0, keys_only: bool = False
    ) -> Range:
        return await self._keys.list(
            prefix, limit=limit, start_after=start_after, revision=revision, keys_only=keys_only
        )

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        return await self._keys.transact(conditions, mutations)

    def watch(self, prefix: str, *, from_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return self._watch(prefix, from_revision)

    async def grant_lease(self, ttl_s: int) -> int:
        return await self._leases.grant(ttl_s)

    async def keep_alive(self, lease_id: int, *, deadline_s: float = 1.0) -> float:
        return await self._leases.keep_alive(lease_id, deadline_s=deadline_s)

    async def revoke_lease(self, lease_id: int) -> None:
        await self._leases.revoke(lease_id)

    async def compact(self, revision: int) -> None:
        await self._keys.compact(revision)

    async def close(self) -> None:
        for watch in tuple(self._watches):
            await watch.stop()
        await self._members.close()

    @asynccontextmanager
    async def _watch(self, prefix: str, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        watch = Watch(self._members, self._clock, prefix, from_revision=from_revision)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            await watch.stop()
