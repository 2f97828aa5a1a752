"""What every store promises: the same suite for the in-memory twin and for a real etcd."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.support.etcd import EtcdCluster, etcd_cluster

from leeward.clock import SystemClock
from leeward.errors import Compacted, InvalidArgument, LeaseNotFound, StoreUnavailable
from leeward.store.etcd import EtcdStore
from leeward.store.memory import MemoryStore
from leeward.store.port import (
    Change,
    CreateRevisionIs,
    Delete,
    KeyValue,
    ModRevisionIs,
    Mutation,
    Put,
    Store,
    WatchBatch,
)

_WAIT_S = 10.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(Path(tmp_path_factory.mktemp("etcd"))) as cluster:
        yield cluster


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    clock = SystemClock()
    made: Store
    if request.param == "memory":
        made = MemoryStore(clock)
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd")
        made = EtcdStore(cluster.endpoints, tls=None, clock=clock)
    yield made
    await made.close()


@pytest.fixture
def root() -> str:
    """A prefix of the test's own, since the tests share one etcd."""
    return f"/test/{uuid.uuid4().hex}/"


async def put(store: Store, key: str, value: bytes = b"x", lease_id: int = 0) -> int:
    return (await store.transact([], [Put(key, value, lease_id)])).revision


async def delete(store: Store, key: str) -> int:
    return (await store.transact([], [Delete(key)])).revision


async def read_changes(batches: AsyncIterator[WatchBatch], enough: Callable[[list[Change]], bool]) -> list[Change]:
    changes: list[Change] = []
    async with asyncio.timeout(_WAIT_S):
        while not enough(changes):
            changes += (await anext(batches)).changes
    return changes


async def first_changes(batches: AsyncIterator[WatchBatch], *, within_s: float = _WAIT_S) -> tuple[Change, ...]:
    async with asyncio.timeout(within_s):
        while not (batch := await anext(batches)).changes:
            continue
        return batch.changes


async def watch_first_changes(store: Store, prefix: str, *, from_revision: int) -> tuple[Change, ...]:
    async with store.watch(prefix, from_revision=from_revision) as batches:
        return await first_changes(batches)


async def test_a_key_is_created_changed_and_deleted(store: Store, root: str) -> None:
    key = root + "a"
    assert await store.get(key) is None
    created = await store.transact([ModRevisionIs(key, 0)], [Put(key, b"1")])
    assert created.succeeded
    assert await store.get(key) == KeyValue(key, b"1", created.revision, created.revision)
    changed = await store.transact([ModRevisionIs(key, created.revision)], [Put(key, b"2")])
    assert changed.revision == created.revision + 1
    assert await store.get(key) == KeyValue(key, b"2", created.revision, changed.revision)
    await delete(store, key)
    assert await store.get(key) is None
    again = await store.transact([CreateRevisionIs(key, 0)], [Put(key, b"3")])
    assert again.succeeded
    assert await store.get(key) == KeyValue(key, b"3", again.revision, again.revision)


async def test_nothing_is_written_unless_every_condition_holds(store: Store, root: str) -> None:
    a, b = root + "a", root + "b"
    first = await put(store, a)
    second = await put(store, a, b"2")
    failed = await store.transact([CreateRevisionIs(a, first), ModRevisionIs(a, first)], [Put(a, b"3"), Put(b, b"3")])
    assert not failed.succeeded
    assert failed.revision == second
    assert await store.get(b) is None
    done = await store.transact(
        [CreateRevisionIs(a, first), ModRevisionIs(a, second), ModRevisionIs(b, 0)], [Put(b, b"3"), Delete(a)]
    )
    assert done.succeeded
    assert [item.key for item in (await store.list(root)).items] == [b]


async def test_a_transaction_without_effect_makes_no_revision(store: Store, root: str) -> None:
    revision = await put(store, root + "a")
    assert (await store.transact([], [])).revision == revision
    assert (await store.transact([], [Delete(root + "never"), Delete(root + "never")])).revision == revision
    assert (await store.transact([ModRevisionIs(root + "a", revision)], [])).succeeded


async def test_one_of_many_competing_writers_wins(store: Store, root: str) -> None:
    key = root + "lock"
    outcomes = await asyncio.gather(
        *(store.transact([ModRevisionIs(key, 0)], [Put(key, str(n).encode())]) for n in range(20))
    )
    winners = [n for n, outcome in enumerate(outcomes) if outcome.succeeded]
    assert len(winners) == 1
    found = await store.get(key)
    assert found is not None
    assert found.value == str(winners[0]).encode()


async def test_lists_are_ordered_paged_and_of_one_revision(store: Store, root: str) -> None:
    names = ["a", "a/b", "a0", "b", "ä", "\U0001f980"]
    for name in reversed(names):
        await put(store, root + "l/" + name, name.encode())
    await put(store, root + "m", b"beyond the prefix")
    whole = await store.list(root + "l/")
    assert [item.key.removeprefix(root + "l/") for item in whole.items] == names
    assert not whole.more

    page = await store.list(root + "l/", limit=4)
    assert page.more
    await delete(store, root + "l/b")
    await put(store, root + "l/ä", b"changed")
    await put(store, root + "l/z")
    rest = await store.list(root + "l/", start_after=page.items[-1].key, revision=page.revision, limit=2)
    assert page.items + rest.items == whole.items
    assert not rest.more
    assert [item.key for item in (await store.list(root + "l/", start_after=root + "l/a0")).items] == [
        root + "l/" + name for name in ("z", "ä", "\U0001f980")
    ]
    bare = await store.list(root + "l/", keys_only=True)
    assert {item.value for item in bare.items} == {b""}
    assert bare.items[0].mod_revision == whole.items[0].mod_revision
    assert (await store.list(root + "none/")).items == ()


async def test_long_lists_come_whole(store: Store, root: str) -> None:
    for start in range(0, 1200, 100):
        await store.transact([], [Put(f"{root}{n:05}", b"v") for n in range(start, start + 100)])
    assert len((await store.list(root)).items) == 1200
    part = await store.list(root, limit=700)
    assert len(part.items) == 700
    assert part.more


async def test_a_revision_to_come_cannot_be_listed(store: Store, root: str) -> None:
    revision = await put(store, root + "a")
    with pytest.raises(InvalidArgument):
        await store.list(root, revision=revision + 1000)


async def test_what_is_too_much_is_refused(store: Store, root: str) -> None:
    assert (await store.transact([], [Put(f"{root}{n}", b"") for n in range(128)])).succeeded
    assert (await store.transact([ModRevisionIs(f"{root}x{n}", 0) for n in range(128)], [])).succeeded
    large = b"x" * 1_572_000
    assert (await store.transact([], [Put(root + "large", large)])).succeeded
    refused: list[list[Mutation]] = [
        [Put(f"{root}{n}", b"") for n in range(129)],
        [Put(root + "large", large + b"x" * 1000)],
        [Put(root + "1", large[:800_000]), Put(root + "2", large[:800_000])],
        [Put(root + "twice", b"1"), Put(root + "twice", b"2")],
        [Put(root + "both", b"1"), Delete(root + "both")],
        [Put("", b"1")],
    ]
    for mutations in refused:
        with pytest.raises(InvalidArgument):
            await store.transact([], mutations)


async def test_a_watch_sees_every_change_from_its_revision_in_order(store: Store, root: str) -> None:
    start = await put(store, root + "w/a", b"1")
    deleted = await delete(store, root + "w/a")
    await put(store, root + "other")
    async with store.watch(root + "w/", from_revision=start) as batches:
        both = await store.transact([], [Put(root + "w/b", b"2"), Put(root + "w/a", b"3")])
        changes = await read_changes(batches, lambda changes: len(changes) >= 4)
        assert changes[:2] == [
            Change(root + "w/a", b"1", start, start),
            Change(root + "w/a", None, 0, deleted),
        ]
        assert sorted(changes[2:], key=lambda change: change.key) == [
            Change(root + "w/a", b"3", both.revision, both.revision),
            Change(root + "w/b", b"2", both.revision, both.revision),
        ]


async def test_a_batch_holds_whole_revisions_and_says_how_far_it_goes(store: Store, root: str) -> None:
    start = (await store.list(root)).revision + 1
    revisions = []
    value = b"x" * 100_000
    for n in range(20):
        done = await store.transact([], [Put(f"{root}{n}/{part}", value) for part in range(4)])
        revisions.append(done.revision)
    async with asyncio.timeout(_WAIT_S), store.watch(root, from_revision=start) as batches:
        seen: list[int] = []
        while len(seen) < 80:
            batch = await anext(batches)
            of_batch = [change.mod_revision for change in batch.changes]
            assert all(of_batch.count(revision) == 4 for revision in set(of_batch))
            if of_batch:
                assert batch.revision == max(of_batch)
            seen += of_batch
    assert seen == [revision for revision in revisions for _ in range(4)]


async def test_a_quiet_watch_shows_bookmarks_that_reach_the_present(store: Store, root: str) -> None:
    start = (await store.list(root)).revision + 1
    async with asyncio.timeout(_WAIT_S), store.watch(root + "quiet/", from_revision=start) as batches:
        first = await anext(batches)
        assert first.changes == ()
        revision = await put(store, root + "elsewhere")
        while (batch := await anext(batches)).revision < revision:
            assert batch.changes == ()
        mine = await put(store, root + "quiet/a")
        while not (batch := await anext(batches)).changes:
            assert batch.revision < mine
        assert batch.revision == mine


async def test_a_reader_may_stop_waiting_and_come_back(store: Store, root: str) -> None:
    start = (await store.list(root)).revision + 1
    async with store.watch(root, from_revision=start) as batches:
        for n in range(5):
            with pytest.raises(TimeoutError):
                await first_changes(batches, within_s=0.05)
            await put(store, root + str(n))
            assert [change.key for change in await first_changes(batches)] == [root + str(n)]


async def test_history_before_a_compaction_is_gone_and_says_so(store: Store, root: str) -> None:
    old = await put(store, root + "a", b"1")
    kept = await put(store, root + "a", b"2")
    new = await put(store, root + "b")
    await store.compact(kept)
    await store.compact(kept)
    await store.compact(old)
    with pytest.raises(Compacted) as listed:
        await store.list(root, revision=old)
    assert listed.value.revision >= kept
    assert (await store.list(root, revision=kept)).items == (KeyValue(root + "a", b"2", old, kept),)
    for gone in (old, kept):
        with pytest.raises(Compacted) as watched:
            await watch_first_changes(store, root, from_revision=gone)
        assert watched.value.revision == kept
    assert [change.key for change in await watch_first_changes(store, root, from_revision=new)] == [root + "b"]
    with pytest.raises(InvalidArgument):
        await store.compact(new + 1000)


async def test_a_compaction_at_a_deletion_hides_it_from_nobody(store: Store, root: str) -> None:
    await put(store, root + "a")
    seen = (await store.list(root)).revision
    deleted = await delete(store, root + "a")
    await store.compact(deleted)
    with pytest.raises(Compacted):
        await watch_first_changes(store, root, from_revision=seen + 1)


async def test_a_lease_that_is_not_renewed_takes_its_keys_with_it(store: Store, root: str) -> None:
    start = (await store.list(root)).revision + 1
    lease_id = await store.grant_lease(2)
    await put(store, root + "held/1", lease_id=lease_id)
    await put(store, root + "held/2", lease_id=lease_id)
    await put(store, root + "freed", lease_id=lease_id)
    await put(store, root + "freed")
    held = await store.get(root + "held/1")
    assert held is not None
    assert held.lease_id == lease_id
    async with store.watch(root, from_revision=start) as batches:
        changes = await read_changes(batches, lambda seen: sum(change.value is None for change in seen) == 2)
    gone = [change for change in changes if change.value is None]
    assert [change.key for change in gone] == [root + "held/1", root + "held/2"]
    assert gone[0].mod_revision == gone[1].mod_revision
    assert [item.key for item in (await store.list(root)).items] == [root + "freed"]
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease_id)
    with pytest.raises(LeaseNotFound):
        await store.transact([], [Put(root + "late", b"", lease_id), Put(root + "late2", b"")])
    assert await store.get(root + "late2") is None


async def test_a_renewed_lease_lives_and_a_revoked_one_ends_at_once(store: Store, root: str) -> None:
    lease_id = await store.grant_lease(2)
    await put(store, root + "held", lease_id=lease_id)
    for _ in range(4):
        assert await store.keep_alive(lease_id) == 2.0
        await asyncio.sleep(1.0)
    assert await store.get(root + "held") is not None
    await store.revoke_lease(lease_id)
    assert await store.get(root + "held") is None
    await store.revoke_lease(lease_id)
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease_id)


async def test_closing_ends_watches_and_refuses_calls(store: Store, root: str) -> None:
    async with store.watch(root, from_revision=await put(store, root + "a")) as batches:
        await first_changes(batches)
        reader = asyncio.create_task(_until_the_end(batches))
        await store.close()
        async with asyncio.timeout(_WAIT_S):
            await reader
    with pytest.raises(StoreUnavailable):
        await store.get(root)
    with pytest.raises(StoreUnavailable):
        await put(store, root)


async def _until_the_end(batches: AsyncIterator[WatchBatch]) -> None:
    async for batch in batches:
        assert batch.changes == ()
