"""The store as one part of a simulated cluster reaches it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from leeward.errors import StoreUnavailable
from leeward.store.port import Condition, KeyValue, Mutation, Range, Store, Transaction, WatchBatch

StoreHook = Callable[[str], Awaitable[None]]


async def no_hook(_method: str) -> None:
    """Nothing happens around a call."""


class LinkedStore:
    """A `Store` that can be cut off, and whose calls a test may hold up, break or observe.

    Each call takes a `delay()` on its way there and another one back, so that a watch may tell of a write before its
    writer hears of it. `reaches()` tells whether the link stands, `linked()` waits until it does: what a watch has to
    tell waits with it. `hook("before get")` and `hook("after transact")` surround each call; what a hook raises, the
    caller gets: raised before, nothing was written; raised after, it was.
    """

    def __init__(
        self,
        store: Store,
        *,
        reaches: Callable[[], bool],
        linked: Callable[[], Awaitable[None]],
        delay: Callable[[], Awaitable[None]],
        hook: StoreHook = no_hook,
    ) -> None:
        self._store = store
        self._reaches = reaches
        self._linked = linked
        self._delay = delay
        self._hook = hook

    async def _enter(self, method: str) -> None:
        await self._hook(f"before {method}")
        await self._delay()
        if not self._reaches():
            raise StoreUnavailable("the store cannot be reached")

    async def get(self, key: str) -> KeyValue | None:
        await self._enter("get")
        return await self._store.get(key)

    async def list(
        self, prefix: str, *, limit: int = 0, start_after: str = "", revision: int = 0, keys_only: bool = False
    ) -> Range:
        await self._enter("list")
        return await self._store.list(
            prefix, limit=limit, start_after=start_after, revision=revision, keys_only=keys_only
        )

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        await self._enter("transact")
        outcome = await self._store.transact(conditions, mutations)
        await self._delay()
        await self._hook("after transact")
        return outcome

    def watch(self, prefix: str, *, from_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return self._watch(prefix, from_revision)

    @asynccontextmanager
    async def _watch(self, prefix: str, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        async with self._store.watch(prefix, from_revision=from_revision) as batches:
            yield self._while_linked(batches)

    async def _while_linked(self, batches: AsyncIterator[WatchBatch]) -> AsyncIterator[WatchBatch]:
        async for batch in batches:
            await self._linked()
            yield batch

    async def grant_lease(self, ttl_s: int) -> int:
        await self._enter("grant_lease")
        return await self._store.grant_lease(ttl_s)

    async def keep_alive(self, lease_id: int, *, deadline_s: float = 1.0) -> float:
        await self._enter("keep_alive")
        return await self._store.keep_alive(lease_id, deadline_s=deadline_s)

    async def revoke_lease(self, lease_id: int) -> None:
        await self._enter("revoke_lease")
        await self._store.revoke_lease(lease_id)

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        """The store itself is closed by whoever made it."""
