"""What only the in-memory store promises: exact time on a clock of one's own, order, and speed."""

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime

import pytest

from leeward.errors import Compacted, LeaseNotFound
from leeward.store.memory import MemoryStore
from leeward.store.port import Delete, Put


class ManualClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def monotonic_s(self) -> float:
        return self._now

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now, UTC)

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), event))
        await event.wait()

    def timeout(self, seconds: float) -> asyncio.Timeout:
        raise AssertionError(f"the store bounds nothing by this clock, and not to {seconds:g} s")

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking each sleeper at its own moment."""
        until = self._now + seconds
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            self._now, _, event = heapq.heappop(self._sleepers)
            event.set()
            await _settle()
        self._now = until


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lease_ends_at_the_very_moment_it_is_due() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    lease_id = await store.grant_lease(5)
    await store.transact([], [Put("/a", b"", lease_id)])
    async with store.watch("/", from_revision=3) as batches:
        await clock.advance(4.0)
        assert await store.keep_alive(lease_id) == 5.0
        await clock.advance(4.75)
        assert await store.get("/a") is not None
        await clock.advance(0.25)
        assert await store.get("/a") is None
        batch = await anext(batches)
        assert [(change.key, change.value) for change in batch.changes] == [("/a", None)]
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease_id)
    await store.close()


async def test_a_reader_slower_than_a_compaction_is_told() -> None:
    store = MemoryStore(ManualClock())
    async with store.watch("/a/", from_revision=2) as slow, store.watch("/b/", from_revision=2) as quiet:
        await store.transact([], [Put("/a/1", b"")])
        revision = (await store.transact([], [Delete("/a/1")])).revision
        await store.compact(revision)
        await store.compact((await store.transact([], [Put("/c", b"")])).revision)
        await store.transact([], [Put("/b/1", b"")])
        with pytest.raises(Compacted):
            await anext(slow)
        assert [change.key for change in (await anext(quiet)).changes] == ["/b/1"]
    await store.close()


async def test_it_stays_fast_with_many_keys() -> None:
    store = MemoryStore(ManualClock())
    started = time.perf_counter()
    for start in range(0, 50_000, 100):
        await store.transact([], [Put(f"/k/{n * 7919 % 50_000:06}", b"v") for n in range(start, start + 100)])
    for n in range(20_000):
        assert await store.get(f"/k/{n:06}") is not None
        await store.list(f"/k/{n:06}", limit=1)
    assert time.perf_counter() - started < 10.0
    await store.close()
