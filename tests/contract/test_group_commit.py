"""Transactions sent together mean what they mean alone, on the in-memory store and on a real etcd."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.etcd import EtcdCluster, etcd_cluster

from leeward.clock import SystemClock
from leeward.errors import InvalidArgument, LeewardError, StoreIndefinite, StoreUnavailable
from leeward.store.etcd import EtcdStore
from leeward.store.memory import MemoryStore
from leeward.store.port import Condition, ModRevisionIs, Mutation, Put, Store, Transaction
from leeward_controller.group_commit import GroupCommit

_WAIT_S = 30.0


class Watched:
    """A store that counts what is sent, holds it up until `open` is set, and then may fail."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sent: list[int] = []
        self.open = asyncio.Event()
        self.fails: LeewardError | None = None

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        self.sent.append(len(mutations))
        await self.open.wait()
        if self.fails is not None:
            raise self.fails
        return await self.store.transact(conditions, mutations)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(Path(tmp_path_factory.mktemp("etcd"))) as cluster:
        yield cluster


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def watched(request: pytest.FixtureRequest) -> AsyncIterator[Watched]:
    clock = SystemClock()
    made: Store
    if request.param == "memory":
        made = MemoryStore(clock)
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd")
        made = EtcdStore(cluster.endpoints, tls=None, clock=clock)
    yield Watched(made)
    await made.close()


@pytest.fixture
def group(watched: Watched) -> GroupCommit:
    return GroupCommit(watched)  # type: ignore[arg-type]  # Nothing but transactions is asked of it.


@pytest.fixture
def root() -> str:
    """A prefix of the test's own, since the tests share one etcd."""
    return f"/group/{uuid.uuid4().hex}/"


async def begun(sendings: Sequence[asyncio.Task[Transaction]]) -> Sequence[asyncio.Task[Transaction]]:
    """Let each come to where it waits."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in sendings)
    return sendings


def sending(group: GroupCommit, conditions: Sequence[Condition], *keys: str) -> asyncio.Task[Transaction]:
    return asyncio.create_task(group.transact(conditions, [Put(key, b"x") for key in keys]))


async def test_those_that_wait_go_together(watched: Watched, group: GroupCommit, root: str) -> None:
    sendings = await begun([sending(group, [ModRevisionIs(f"{root}{n}", 0)], f"{root}{n}") for n in range(12)])
    watched.open.set()
    outcomes = await asyncio.gather(*sendings)
    assert all(outcome.succeeded for outcome in outcomes)
    assert watched.sent == [1, 1, 10]
    for n, outcome in enumerate(outcomes):
        found = await watched.store.get(f"{root}{n}")
        assert found is not None
        assert found.mod_revision == outcome.revision


async def test_one_whose_comparison_fails_harms_no_other(watched: Watched, group: GroupCommit, root: str) -> None:
    wrong = [ModRevisionIs(root + "never", 7)]
    tasks = [sending(group, wrong if n in (3, 7) else [], f"{root}{n}") for n in range(10)]
    sendings = await begun(tasks)
    watched.open.set()
    outcomes = await asyncio.gather(*sendings)
    assert [n for n, outcome in enumerate(outcomes) if not outcome.succeeded] == [3, 7]
    there = [n for n in range(10) if await watched.store.get(f"{root}{n}") is not None]
    assert there == [0, 1, 2, 4, 5, 6, 8, 9]


async def test_one_that_the_store_refuses_harms_no_other(watched: Watched, group: GroupCommit, root: str) -> None:
    good = [sending(group, [], f"{root}{n}") for n in range(4)]
    bad = asyncio.create_task(group.transact([], [Put("", b"x")]))
    sendings = await begun([*good, bad])
    watched.open.set()
    *outcomes, refused = await asyncio.gather(*sendings, return_exceptions=True)
    assert isinstance(refused, InvalidArgument)
    assert all(isinstance(outcome, Transaction) and outcome.succeeded for outcome in outcomes)


@pytest.mark.parametrize("kind", [StoreUnavailable, StoreIndefinite])
async def test_an_end_that_is_not_known_is_known_of_none(
    watched: Watched, group: GroupCommit, root: str, kind: type[LeewardError]
) -> None:
    sendings = await begun([sending(group, [], f"{root}{n}") for n in range(6)])
    watched.fails = kind("no answer")
    watched.open.set()
    outcomes = await asyncio.gather(*sendings, return_exceptions=True)
    assert all(isinstance(outcome, kind) for outcome in outcomes)
    assert watched.sent == [1, 1, 4]


async def test_who_is_cancelled_holds_nobody_up(watched: Watched, group: GroupCommit, root: str) -> None:
    sendings = await begun([sending(group, [], f"{root}{n}") for n in range(8)])
    for gone in (0, 2, 5):  # One that is under way, the next that would send, and one that it would send for.
        sendings[gone].cancel()
    watched.open.set()
    outcomes = await asyncio.gather(*sendings, return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, asyncio.CancelledError)] == [0, 2, 5]
    assert all(isinstance(outcomes[n], Transaction) for n in (1, 3, 4, 6, 7))
    assert await watched.store.get(root + "2") is None


async def test_when_who_sends_is_cancelled_the_others_do_not_know(
    watched: Watched, group: GroupCommit, root: str
) -> None:
    sendings = await begun([sending(group, [], f"{root}{n}") for n in range(5)])
    sendings[0].cancel()
    async with asyncio.timeout(_WAIT_S):
        while len(watched.sent) < 3:  # noqa: ASYNC110 - the store is not asked to tell when it is asked.
            await asyncio.sleep(0)
    sendings[2].cancel()  # It sends for those behind it, in the place of the first.
    watched.open.set()
    outcomes = await asyncio.gather(*sendings, return_exceptions=True)
    assert isinstance(outcomes[1], Transaction)
    assert [type(outcomes[n]) for n in (3, 4)] == [StoreIndefinite, StoreIndefinite]
    assert (await group.transact([], [Put(root + "after", b"x")])).succeeded


async def test_counting_together_loses_no_count(watched: Watched, group: GroupCommit, root: str) -> None:
    """Many add to few counters by comparing, several at once in one transaction."""
    watched.open.set()
    rng = random.Random(1)
    told = dict.fromkeys((f"{root}{n}" for n in range(12)), 0)

    async def add(keys: list[str]) -> None:
        while True:
            found = [await watched.store.get(key) for key in keys]
            conditions = [
                ModRevisionIs(k, 0 if f is None else f.mod_revision) for k, f in zip(keys, found, strict=True)
            ]
            counts = [0 if each is None else int(each.value) for each in found]
            puts = [Put(key, str(count + 1).encode()) for key, count in zip(keys, counts, strict=True)]
            if (await group.transact(conditions, puts)).succeeded:
                for key in keys:
                    told[key] += 1
                return

    async with asyncio.timeout(_WAIT_S):
        await asyncio.gather(*(add(rng.sample(sorted(told), rng.randint(1, 3))) for _ in range(100)))
    for key, count in told.items():
        found = await watched.store.get(key)
        assert (0 if found is None else int(found.value)) == count
