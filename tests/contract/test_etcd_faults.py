"""The etcd store while members stop answering, die, lose connections, or are not there.

Gaps that a test found are in its captured output.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.etcd import EtcdCluster, EtcdMember, etcd_cluster
from tests.support.proxy import cutting_proxy

from leeward.clock import SystemClock
from leeward.errors import LeaseNotFound, StoreIndefinite, StoreUnavailable
from leeward.store.etcd import EtcdStore
from leeward.store.port import Change, ModRevisionIs, Put, Store, WatchBatch

pytestmark = pytest.mark.etcd

_TTL_S = 5
# A lease of 5 s renewed every second survives this only if no more than a few beats are lost.
_LONGEST_BEAT_GAP_S = 4.0
_LONGEST_READ_S = 4.0
_LONGEST_QUIET_S = 6.0


@pytest.fixture
def root() -> str:
    return f"/faults/{uuid.uuid4().hex}/"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    # With etcd's default of 1 s, an election takes 1.3 to 3 s, which leaves little of a lease of 5 s.
    options = ["--election-timeout", "500"]
    with etcd_cluster(Path(tmp_path_factory.mktemp("three")), members=3, options=options) as cluster:
        yield cluster


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path / "one") as cluster:
        yield cluster


@asynccontextmanager
async def connected(endpoints: Sequence[str]) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, tls=None, clock=SystemClock())
    try:
        yield store
    finally:
        await store.close()


def first_in_use(cluster: EtcdCluster, member: EtcdMember) -> list[str]:
    """Endpoints in the order that makes a new store use `member`."""
    return [member.endpoint, *(other.endpoint for other in cluster.members if other is not member)]


@dataclass
class Life:
    """What a node and a controller do all day, and how long each of it took at worst."""

    store: Store
    root: str
    lease_id: int = 0
    longest_beat_gap_s: float = 0.0
    longest_read_s: float = 0.0
    longest_quiet_s: float = 0.0
    longest_write_gap_s: float = 0.0
    indefinite: int = 0
    written: list[str] = field(default_factory=list)
    seen: list[Change] = field(default_factory=list)
    stopping: bool = False

    async def beat(self) -> None:
        last = time.monotonic()
        while not self.stopping:
            started = time.monotonic()
            try:
                await self.store.keep_alive(self.lease_id)
                self.longest_beat_gap_s = max(self.longest_beat_gap_s, time.monotonic() - last)
                last = started
            except StoreUnavailable:
                continue
            await asyncio.sleep(1.0 - (time.monotonic() - started))

    async def read(self) -> None:
        while not self.stopping:
            started = time.monotonic()
            found = await self.store.get(self.root + "lease")
            assert found is not None, "the lease was lost"
            self.longest_read_s = max(self.longest_read_s, time.monotonic() - started)
            await asyncio.sleep(0.02)

    async def write(self) -> None:
        number = 0
        last = time.monotonic()
        while not self.stopping:
            key = f"{self.root}w/{number:06}"
            try:
                await self.store.transact([], [Put(key, b"")])
                self.written.append(key)
            except StoreIndefinite:
                # Not there now does not mean that it will not be: a paused member carries it out when it resumes.
                self.indefinite += 1
            number += 1
            now = time.monotonic()
            self.longest_write_gap_s, last = max(self.longest_write_gap_s, now - last), now
            await asyncio.sleep(0.02)

    async def observe(self, batches: AsyncIterator[WatchBatch]) -> None:
        last = time.monotonic()
        async for batch in batches:
            now = time.monotonic()
            self.longest_quiet_s, last = max(self.longest_quiet_s, now - last), now
            self.seen += batch.changes
            if self.stopping and self.seen and self.seen[-1].key >= self.written[-1]:
                return

    def report(self, fault: str) -> None:
        print(
            f"{fault}: longest gap between beats {self.longest_beat_gap_s:.2f} s, longest read"
            f" {self.longest_read_s:.2f} s, gap between writes {self.longest_write_gap_s:.2f} s"
            f" ({self.indefinite} indefinite), watch quiet {self.longest_quiet_s:.2f} s,"
            f" {len(self.seen)} changes seen of {len(self.written)}"
        )


async def live_through(store: Store, root: str, fault: AsyncIterator[None]) -> Life:
    """Beat, read, write and watch while the fault happens, and one second before and after."""
    life = Life(store, root, await store.grant_lease(_TTL_S))
    done = await store.transact([], [Put(root + "lease", b"", life.lease_id)])
    async with store.watch(root + "w/", from_revision=done.revision) as batches, asyncio.TaskGroup() as group:
        group.create_task(life.beat())
        group.create_task(life.read())
        group.create_task(life.write())
        group.create_task(life.observe(batches))
        await asyncio.sleep(1.0)
        async for _ in fault:
            continue
        await asyncio.sleep(1.0)
        life.stopping = True
    return life


def check(life: Life, fault: str) -> None:
    life.report(fault)
    assert life.longest_beat_gap_s < _LONGEST_BEAT_GAP_S
    assert life.longest_read_s < _LONGEST_READ_S
    assert life.longest_quiet_s < _LONGEST_QUIET_S
    revisions = [change.mod_revision for change in life.seen]
    assert len(set(revisions)) == len(revisions), "a change was seen twice"
    assert revisions == sorted(revisions), "changes came out of order"
    seen = {change.key for change in life.seen}
    assert set(life.written) <= seen, "a change was missed"
    assert len(seen) == len(life.seen), "a write was done twice"
    assert len(seen) <= len(life.written) + life.indefinite


@pytest.mark.parametrize("role", ["follower", "leader"])
async def test_a_member_that_stops_answering_costs_neither_the_lease_nor_a_change(
    three: EtcdCluster, root: str, role: str
) -> None:
    three.wait_until_healthy()
    leader = three.leader()
    in_use = leader if role == "leader" else next(member for member in three.members if member is not leader)

    async def stopped() -> AsyncIterator[None]:
        in_use.pause()
        try:
            await asyncio.sleep(_TTL_S + 2.0)
        finally:
            in_use.resume()
        yield

    async with connected(first_in_use(three, in_use)) as store:
        check(await live_through(store, root, stopped()), f"{role} stopped")


async def test_the_death_of_the_leader_costs_neither_the_lease_nor_a_change(three: EtcdCluster, root: str) -> None:
    three.wait_until_healthy()
    leader = three.leader()

    async def killed() -> AsyncIterator[None]:
        leader.kill()
        await asyncio.sleep(_TTL_S)
        three.restart(leader)
        yield

    async with connected(first_in_use(three, leader)) as store:
        check(await live_through(store, root, killed()), "leader killed")


async def write_three(store: Store, stem: str) -> list[tuple[str, int]]:
    mutations = [Put(f"{stem}/{part}", b"x" * 30) for part in range(3)]
    done = await store.transact([], mutations)
    return [(mutation.key, done.revision) for mutation in mutations]


async def test_a_connection_cut_again_and_again_in_a_backlog_loses_no_change(one: EtcdCluster, root: str) -> None:
    async with connected(one.endpoints) as writer:
        expected = [
            pair
            for start in range(0, 6000, 50)
            for pairs in await asyncio.gather(*(write_three(writer, f"{root}{n:05}") for n in range(start, start + 50)))
            for pair in pairs
        ]
    expected.sort(key=lambda pair: (pair[1], pair[0]))
    seen: list[tuple[str, int]] = []
    # etcd sends up to 1000 revisions at a time, here about 320 kB, so that every connection ends inside an answer.
    async with (
        asyncio.timeout(60.0),
        cutting_proxy(one.endpoints[0], cut_after_bytes=400_000) as proxy,
        connected([proxy.endpoint]) as store,
        store.watch(root, from_revision=expected[0][1]) as batches,
    ):
        while len(seen) < len(expected):
            seen += [(change.key, change.mod_revision) for change in (await anext(batches)).changes]
        assert proxy.connections > 3
    print(f"{len(seen)} changes over {proxy.connections} connections")
    assert seen == expected


async def test_a_write_whose_answer_does_not_come_is_indefinite_and_not_repeated(one: EtcdCluster, root: str) -> None:
    member = one.members[0]
    async with connected(one.endpoints) as store:
        before = await store.transact([], [Put(root + "a", b"")])
        lease_id = await store.grant_lease(60)
        member.pause()
        try:
            started = time.monotonic()
            with pytest.raises(StoreIndefinite):
                await store.transact([], [Put(root + "a", b"ambiguous")])
            print(f"indefinite after {time.monotonic() - started:.2f} s")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.keep_alive(lease_id, deadline_s=0.5)
            print(f"no answer to a keep-alive after {time.monotonic() - started:.2f} s")
            assert time.monotonic() - started < 3.0, "the bound of any other call"
            with pytest.raises(StoreUnavailable):
                await store.get(root + "a")
        finally:
            member.resume()
        # Whichever way it ended, there is at most one more revision.
        after = await store.transact([], [Put(root + "b", b"")])
        assert after.revision <= before.revision + 2
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(lease_id + 1)


async def test_a_write_that_comes_late_cannot_undo_one_made_since(three: EtcdCluster, root: str) -> None:
    """A paused member carries out what it was sent when it resumes, however long ago its client gave up."""
    three.wait_until_healthy()
    leader = three.leader()
    follower = next(member for member in three.members if member is not leader)
    key = root + "a"
    async with connected(first_in_use(three, follower)) as store:
        first = await store.transact([], [Put(key, b"first")])
        follower.pause()
        try:
            with pytest.raises(StoreIndefinite):
                await store.transact([ModRevisionIs(key, first.revision)], [Put(key, b"late")])
            assert (await store.transact([ModRevisionIs(key, first.revision)], [Put(key, b"since")])).succeeded
        finally:
            follower.resume()
    three.wait_until_healthy()
    async with connected([follower.endpoint]) as store:
        await store.transact([], [Put(root + "b", b"")])
        found = await store.get(key)
        assert found is not None
        assert found.value == b"since"


async def test_a_connection_that_breaks_in_mid_write_is_indefinite(one: EtcdCluster, root: str) -> None:
    member = one.members[0]
    async with connected(one.endpoints) as store:
        await store.transact([], [Put(root + "a", b"")])
        member.pause()
        writing = asyncio.create_task(store.transact([], [Put(root + "a", b"ambiguous")]))
        # The request is on its way; killed, the member can neither take nor refuse it.
        await asyncio.sleep(0.3)
        member.kill()
        with pytest.raises(StoreIndefinite):
            await writing


async def test_where_nothing_listens_a_write_definitely_did_not_happen(one: EtcdCluster, root: str) -> None:
    async with connected(one.endpoints) as store:
        await store.transact([], [Put(root + "a", b"")])
        one.members[0].kill()
        with contextlib.suppress(StoreIndefinite, StoreUnavailable):
            # The connection may not have broken yet, and breaks with this one on its way.
            await store.transact([], [Put(root + "a", b"ambiguous")])
        with pytest.raises(StoreUnavailable):
            await store.transact([], [Put(root + "a", b"never")])


async def test_a_write_passes_by_members_that_are_not_there(three: EtcdCluster, root: str) -> None:
    three.wait_until_healthy()
    async with connected(["127.0.0.1:1", "nowhere.invalid:2379", three.endpoints[0]]) as store:
        started = time.monotonic()
        assert (await store.transact([], [Put(root + "a", b"")])).succeeded
        print(f"past two members in {time.monotonic() - started:.2f} s")
        assert await store.get(root + "a") is not None
