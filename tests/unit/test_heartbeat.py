"""Both heartbeats, the observer and the guard together, on virtual time."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from leeward import keys
from leeward.agent.convert import decode_node_report, encode_node_report
from leeward.agent.types import NodeReport, SlotObservation
from leeward.errors import FailedPrecondition, StoreUnavailable
from leeward.store.memory import MemoryStore
from leeward.store.port import Delete, KeyValue, Put
from leeward_agent.guard.simulated import SimulatedGuard
from leeward_agent.heartbeat.legitimacy import Legitimacy, renewed
from leeward_agent.heartbeat.service import HeartbeatService
from leeward_agent.storage.memory import MemoryPool, MemoryPoolContents, PoolFault
from leeward_lab.virtual_time import VirtualClock, run_virtually

TTL_S = 5


def virtually(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test runs on a loop whose time only jumps."""

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        async def main() -> None:
            await test(*arguments, **named)

        run_virtually(main)

    # pytest takes the parameters from the wrapper, and must not see a coroutine function.
    return run


class CuttableStore(MemoryStore):
    """A store that one node can be cut off from, in the ways that a network does."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.cut = False
        self.answer_lost = False

    async def keep_alive(self, lease_id: int, *, deadline_s: float = 1.0) -> float:
        await self._pass(deadline_s)
        granted_s = await super().keep_alive(lease_id, deadline_s=deadline_s)
        if self.answer_lost:
            raise StoreUnavailable("no answer")
        return granted_s

    async def get(self, key: str) -> KeyValue | None:
        await self._pass(1.0)
        return await super().get(key)

    async def grant_lease(self, ttl_s: int) -> int:
        await self._pass(1.0)
        return await super().grant_lease(ttl_s)

    async def _pass(self, deadline_s: float) -> None:
        if self.cut:
            await asyncio.sleep(deadline_s)
            raise StoreUnavailable("no route to etcd")


class Host:
    """One node: its agent's heartbeats may stop and start, its guard and its one guest do not."""

    def __init__(self, name: str, contents: MemoryPoolContents, *, is_network: bool = True) -> None:
        self.name = name
        self.clock = VirtualClock()
        self.store = CuttableStore(self.clock)
        self.contents = contents
        self.pool = MemoryPool(contents, self.clock, node=name, is_network=is_network)
        self.killed_at_s: list[float] = []
        self.guests_run = False
        self.guard = SimulatedGuard(self.clock, kill=self._kill, runs=lambda _: self.guests_run)
        self.ttl_s = TTL_S
        self.boot_id = "boot-1"
        self.agents = 0
        self._guard_task = asyncio.create_task(self.guard.run())

    def _kill(self, roots: tuple[Path, ...]) -> None:
        if self.pool.root in roots:
            self.killed_at_s.append(self.clock.monotonic_s())

    async def report(self) -> NodeReport:
        return NodeReport(
            node=self.name,
            boot_id=self.boot_id,
            agent_id=f"agent-{self.agents}",
            address="127.0.0.1:1",
            vcpus=1,
            memory_mib=1,
            pools=(),
            hypervisor="simulated",
            hypervisor_version="1",
            agent_version="1",
            guard_armed=False,
            lease_ttl_s=0.0,
            guard_delay_s=0.0,
        )

    async def guests(self) -> tuple[str, ...]:
        return ("guest-1",)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[HeartbeatService]:
        """An agent from its start to its sudden end."""
        self.agents += 1
        service = HeartbeatService(
            store=self.store,
            pools=[self.pool],
            guard=self.guard,
            clock=self.clock,
            node=self.name,
            boot_id=self.boot_id,
            agent_id=f"agent-{self.agents}",
            lease_key=keys.lease(self.name),
            report=self.report,
            encode=encode_node_report,
            decode=decode_node_report,
            guests=self.guests,
            ttl_s=self.ttl_s,
        )
        task = asyncio.create_task(service.run())
        try:
            yield service
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def published(self) -> NodeReport | None:
        held = await MemoryStore.get(self.store, keys.lease(self.name))
        return None if held is None else decode_node_report(held.value)

    async def slot(self, observer: HeartbeatService) -> SlotObservation:
        return next(seen for seen in await observer.observe_slots() if seen.node == self.name)


@pytest.fixture
def contents() -> MemoryPoolContents:
    return MemoryPoolContents(pool_id="pool-1")


def cut_storage(host: Host, fault: PoolFault = PoolFault.HANGING) -> None:
    host.contents.faults[host.name] = fault


def test_legitimacy_counts_from_sending_and_begins_anew_after_a_gap() -> None:
    span = renewed(None, sent_s=10, ttl_s=5)
    assert span == Legitimacy(since_s=10, until_s=15)
    span = renewed(span, sent_s=12, ttl_s=5)
    # One that was long on its way takes nothing back.
    span = renewed(span, sent_s=11, ttl_s=5)
    assert span == Legitimacy(since_s=10, until_s=17)
    assert span.holds_at(16.9)
    assert not span.holds_at(17)
    assert renewed(span, sent_s=17, ttl_s=5) == Legitimacy(since_s=10, until_s=22)
    assert renewed(span, sent_s=17.1, ttl_s=5) == Legitimacy(since_s=17.1, until_s=22.1)


@virtually
async def test_a_healthy_node_is_published_armed_and_never_killed(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    async with host.agent() as service:
        assert not service.may_start_guests("pool-1")
        await asyncio.sleep(3)
        report = await host.published()
        assert report is not None
        assert report.guard_armed
        assert report.guard_delay_s == pytest.approx(1.0)
        assert report.lease_ttl_s == TTL_S
        for _ in range(600):
            await asyncio.sleep(1)
            assert service.may_start_guests("pool-1")
            assert service.legitimate_until_s >= host.clock.monotonic_s() + TTL_S - 1.1
    assert not host.killed_at_s
    assert contents.slots["node-a"].guests == ("guest-1",)


@virtually
async def test_either_heartbeat_alone_keeps_the_guests(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    async with host.agent() as service:
        await asyncio.sleep(3)
        host.store.cut = True
        await asyncio.sleep(60)
        assert await host.published() is None
        assert service.may_start_guests("pool-1")
        host.store.cut = False
        await asyncio.sleep(3)
        assert await host.published() is not None
        cut_storage(host)
        await asyncio.sleep(60)
        assert service.may_start_guests("pool-1")
    assert not host.killed_at_s


@pytest.mark.parametrize("fault", [PoolFault.HANGING, PoolFault.FAILING])
@virtually
async def test_with_both_lost_the_guests_die_before_anybody_may_conclude_it(
    contents: MemoryPoolContents, fault: PoolFault
) -> None:
    host, other = Host("node-a", contents), Host("node-b", contents)
    async with host.agent() as service, other.agent() as observer:
        await asyncio.sleep(10.37)
        host.store.cut = True
        cut_storage(host, fault)
        cut_at_s = host.clock.monotonic_s()
        while await host.published() is not None or (await host.slot(observer)).silent_s < TTL_S:
            await asyncio.sleep(0.05)
            assert host.clock.monotonic_s() < cut_at_s + 3 * TTL_S
        proved_at_s = host.clock.monotonic_s() + service.guard_delay_s
        assert host.killed_at_s
        assert cut_at_s + TTL_S - 1.1 <= host.killed_at_s[0] <= cut_at_s + TTL_S + 0.1
        assert host.killed_at_s[0] < proved_at_s
        assert not service.may_start_guests("pool-1")
        # Back again, it is vouched for anew, and what was started meanwhile lives.
        host.store.cut = False
        await asyncio.sleep(2)
        killed = len(host.killed_at_s)
        assert service.may_start_guests("pool-1")
        await asyncio.sleep(60)
        assert len(host.killed_at_s) == killed
    assert not other.killed_at_s


@virtually
async def test_a_lost_answer_does_not_count(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    async with host.agent():
        await asyncio.sleep(10.5)
        host.store.answer_lost = True
        cut_storage(host)
        await asyncio.sleep(20)
    assert host.killed_at_s[0] <= 10.5 + TTL_S + 0.1


@virtually
async def test_a_dead_agent_is_as_good_as_a_dead_node_unless_another_comes_in_time(
    contents: MemoryPoolContents,
) -> None:
    host = Host("node-a", contents)
    for _ in range(5):
        async with host.agent():
            await asyncio.sleep(7)
        # A restart: the key stays, and so do the guests.
        await asyncio.sleep(3)
        assert await host.published() is not None
        assert not host.killed_at_s
    async with host.agent():
        await asyncio.sleep(1)
        report = await host.published()
        assert report is not None
        assert (report.agent_id, report.guard_armed) == ("agent-6", True)
        assert not host.killed_at_s
    await asyncio.sleep(TTL_S + 1)
    assert host.killed_at_s


@virtually
async def test_an_agent_restarted_while_etcd_is_down_keeps_the_guests_by_its_slot(
    contents: MemoryPoolContents,
) -> None:
    host = Host("node-a", contents)
    async with host.agent():
        await asyncio.sleep(10)
    host.store.cut = True
    await asyncio.sleep(2)
    async with host.agent():
        await asyncio.sleep(60)
        assert not host.killed_at_s


@pytest.mark.parametrize("with_lease", [True, False])
@virtually
async def test_a_key_that_vanishes_is_put_again(contents: MemoryPoolContents, with_lease: bool) -> None:
    host = Host("node-a", contents)
    async with host.agent():
        await asyncio.sleep(5)
        held = await host.store.get(keys.lease("node-a"))
        assert held is not None
        if with_lease:
            await host.store.revoke_lease(held.lease_id)
        else:
            # The lease lives on and can be renewed, but that shows nobody anything.
            await host.store.transact([], [Delete(keys.lease("node-a"))])
        assert await host.published() is None
        await asyncio.sleep(1.1)
        again = await host.store.get(keys.lease("node-a"))
        assert again is not None
        assert again.lease_id != held.lease_id
    assert not host.killed_at_s


@virtually
async def test_the_slot_of_another_living_host_of_the_same_name_is_left_alone(contents: MemoryPoolContents) -> None:
    host, twin, other = Host("node-a", contents), Host("node-a", contents), Host("node-b", contents)
    twin.boot_id = "boot-2"
    async with other.agent() as observer:
        async with host.agent():
            await asyncio.sleep(3)
            async with twin.agent():
                for _ in range(300):
                    await asyncio.sleep(0.1)
                    assert (await host.slot(observer)).boot_id == "boot-1"
        # A real reboot: the first is gone, and the second writes once the slot has been still for a TTL.
        async with twin.agent():
            await asyncio.sleep(TTL_S + 3)
            assert (await host.slot(observer)).boot_id == "boot-2"


@virtually
async def test_the_key_of_another_living_host_of_the_same_name_is_left_alone(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    twin = Host("node-a", MemoryPoolContents(pool_id="pool-2"))
    twin.store = host.store
    twin.boot_id = "boot-2"
    async with host.agent():
        await asyncio.sleep(3)
        async with twin.agent():
            await asyncio.sleep(30)
            report = await host.published()
            assert report is not None
            assert report.boot_id == "boot-1"
    # A real reboot: the first is gone, and the second gets in as soon as its lease has ended.
    async with twin.agent():
        await asyncio.sleep(TTL_S + 1)
        report = await host.published()
        assert report is not None
        assert report.boot_id == "boot-2"


@virtually
async def test_a_silent_guard_is_told_to_the_cluster_and_found_again(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    async with host.agent() as service:
        await asyncio.sleep(3)
        host.guard.reachable = False
        await asyncio.sleep(2)
        report = await host.published()
        assert report is not None
        assert not report.guard_armed
        host.guard.reachable = True
        await asyncio.sleep(2)
        report = await host.published()
        assert report is not None
        assert report.guard_armed
        assert service.guard_armed
    assert not host.killed_at_s


@virtually
async def test_a_pool_of_one_host_is_not_guarded_until_another_comes(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents, is_network=False)
    async with host.agent() as service:
        await asyncio.sleep(5)
        host.store.cut = True
        await asyncio.sleep(30)
        # A local pool shows nobody that the node lives, and its guests are nobody else's business.
        assert service.may_start_guests("pool-1")
        assert service.legitimate_until_s < host.clock.monotonic_s()
        assert not host.killed_at_s
        host.store.cut = False
        await asyncio.sleep(3)
        other = Host("node-b", contents, is_network=False)
        async with other.agent():
            await asyncio.sleep(3)
            host.store.cut = True
            await asyncio.sleep(30)
            assert service.legitimate_until_s > host.clock.monotonic_s()
            cut_storage(host)
            await asyncio.sleep(TTL_S + 1)
            assert host.killed_at_s


@virtually
async def test_a_shorter_ttl_is_not_believed_before_the_old_deadline_has_passed(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    host.ttl_s = 20
    async with host.agent():
        await asyncio.sleep(5)
    host.ttl_s = 5
    async with host.agent():
        await asyncio.sleep(1)
        old_deadline_s = (await host.guard.status()).deadline_s
        report = await host.published()
        assert report is not None
        assert host.clock.monotonic_s() + report.lease_ttl_s + report.guard_delay_s > old_deadline_s
        await asyncio.sleep(20)
        report = await host.published()
        assert report is not None
        assert report.guard_delay_s == pytest.approx(1.0)


@virtually
async def test_a_longer_ttl_counts_only_once_it_is_published(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    async with host.agent():
        await asyncio.sleep(5)
    host.store.cut = True
    host.ttl_s = 60
    async with host.agent() as service:
        await asyncio.sleep(10)
        assert service.legitimate_until_s <= host.clock.monotonic_s() + TTL_S
        host.store.cut = False
        await asyncio.sleep(5)
        assert service.legitimate_until_s > host.clock.monotonic_s() + 50


@virtually
async def test_an_observer_that_cannot_read_says_nothing_new(contents: MemoryPoolContents) -> None:
    host, other = Host("node-a", contents), Host("node-b", contents)
    async with other.agent() as observer:
        async with host.agent():
            await asyncio.sleep(5)
            assert (await host.slot(observer)).silent_s <= 1.0
        await asyncio.sleep(4)
        silent_s = (await host.slot(observer)).silent_s
        assert 2.5 <= silent_s <= 5.0
        cut_storage(other)
        await asyncio.sleep(30)
        assert (await host.slot(observer)).silent_s <= silent_s + 1.0
        contents.faults.clear()
        await asyncio.sleep(3)
        assert (await host.slot(observer)).silent_s >= 34
    # A new observer counts from its own start.
    async with other.agent() as observer:
        await asyncio.sleep(2)
        assert (await host.slot(observer)).silent_s <= 2.0


@virtually
async def test_taking_leave_is_published_before_the_guard_rests(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    async with host.agent() as service:
        await asyncio.sleep(3)
        host.store.cut = True
        with pytest.raises(StoreUnavailable):
            await service.disarm()
        assert (await host.guard.status()).armed
        host.store.cut = False
        await asyncio.sleep(3)
        await service.disarm()
        assert not (await host.guard.status()).armed
        report = await host.published()
        assert report is not None
        assert not report.guard_armed
        assert not service.may_start_guests("pool-1")
        await asyncio.sleep(30)
        assert not (await host.guard.status()).armed


@virtually
async def test_a_guard_that_refuses_to_rest_keeps_watching(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    host.guests_run = True
    async with host.agent() as service:
        await asyncio.sleep(3)
        with pytest.raises(FailedPrecondition):
            await service.disarm()
        await asyncio.sleep(2)
        report = await host.published()
        assert report is not None
        assert report.guard_armed
        assert service.may_start_guests("pool-1")


@virtually
async def test_a_stray_key_without_a_lease_is_replaced(contents: MemoryPoolContents) -> None:
    host = Host("node-a", contents)
    await host.store.transact([], [Put(keys.lease("node-a"), b"\xff\xff")])
    async with host.agent():
        await asyncio.sleep(2)
        report = await host.published()
        assert report is not None
        assert report.node == "node-a"
