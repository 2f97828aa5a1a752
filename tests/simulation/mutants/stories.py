"""Things too rare to wait for, each told so that a certain mutant breaks it. Without one they all end well."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, TypeVar

from leeward import keys
from leeward.agent.types import Caller, GuestSpec
from leeward.clock import Clock
from leeward.errors import AgentIndefinite, HypervisorError, LeewardError, StaleClaim, StoreIndefinite
from leeward.store.port import Condition, Mutation, Store, Transaction
from leeward_agent.storage.memory import PoolFault
from leeward_controller.core import Policy
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import OperationType, StartArguments, StopArguments
from leeward_controller.failover.model import Isolation, IsolationPolicy
from leeward_lab.simulated.cluster import local_pool_id
from leeward_lab.simulated.network import CONTROLLERS, STORE
from leeward_lab.virtual_time import VirtualClock, run_virtually
from tests.simulation.story import DIGEST, Story
from tests.simulation.weather import Climate, Weather, WeatheredStore

T = TypeVar("T")

_NODE = "host-a"
_NEWEST_CLAIM = 10**9
_NO_CHANCE = random.Random(0)


def brake() -> None:
    """Two of three hosts die at once: nothing is moved by itself."""

    async def main() -> None:
        story = Story()
        await story.begin()
        for name, node in (("web-1", _NODE), ("web-2", "host-b")):
            await story.launched(name, node=node)
        for node in (_NODE, "host-b"):
            await story.cluster.nodes[node].power_off()
        await story.clock.sleep(30.0)
        assert story.braked(), "the brake was not pulled"
        assert story.instance("web-1").node == _NODE, "an instance was moved in spite of the brake"

    run_virtually(main)


def power_cut() -> None:
    """A host dies, and its guest runs elsewhere in seconds."""

    async def main() -> None:
        story = Story()
        await _moved(story)

    run_virtually(main)


def late_start() -> None:
    """A host that is back is asked to start a guest that has been moved since, by somebody who does not know."""

    async def main() -> None:
        story = Story()
        spec = await _moved(story)
        await story.power_on(_NODE)
        await story.until(lambda: story.cluster.nodes[_NODE].heartbeats is not None, within_s=5.0, what="it is back")
        await story.clock.sleep(10.0)
        agent = story.cluster.nodes[_NODE].agent
        assert agent is not None
        with contextlib.suppress(LeewardError):
            await agent.start_guest(Caller("operations/old", "restart", _NEWEST_CLAIM), spec=spec)
        story.check()

    run_virtually(main)


async def _moved(story: Story) -> GuestSpec:
    """Have a guest moved by a power cut; what it was run by before."""
    await story.begin()
    await story.launched("web-1", node=_NODE)
    spec = story.instance("web-1").guest_spec()
    await story.cluster.nodes[_NODE].power_off()
    await story.until(lambda: story.instance("web-1").node not in ("", _NODE), within_s=12.0, what="it runs elsewhere")
    story.check()
    return spec


def store_lost() -> None:
    """A host loses etcd alone: its guest runs on, and is started nowhere else."""

    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node=_NODE)
        story.cluster.network.cut(_NODE, STORE)
        await _watched(story, 15)

    run_virtually(main)


def moved_by_pill() -> None:
    """A host loses all but its storage, and is left a poison pill: its guest ends there before it runs elsewhere."""

    async def main() -> None:
        story = Story(policy=Policy(isolation=IsolationPolicy(Isolation.MOVE, after_s=10.0)))
        await story.begin()
        await story.launched("web-1", node=_NODE)
        _cut_off(story)
        await story.until(lambda: story.instance("web-1").node != _NODE, within_s=60.0, what="it runs elsewhere")
        story.check()

    run_virtually(main)


def slot_lost_later() -> None:
    """A host loses etcd, and its agent the pool a little later: its guest may run until a TTL after its last beat."""

    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node=_NODE)
        _cut_off(story)
        await story.clock.sleep(4.0)
        story.cluster.pool.faults[_NODE] = PoolFault.FAILING
        await _watched(story, 30)

    run_virtually(main)


def early_start() -> None:
    """A host is rebooted, cannot tell anybody, and is asked to start the guest that it ran in its life before."""

    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node=_NODE)
        spec, node = story.instance("web-1").guest_spec(), story.cluster.nodes[_NODE]
        await node.power_off()
        story.cluster.network.cut(_NODE, STORE)
        await story.power_on(_NODE)
        await story.clock.sleep(0.5)
        assert node.agent is not None
        with contextlib.suppress(LeewardError):
            await node.agent.start_guest(Caller("operations/early", "start", _NEWEST_CLAIM), spec=spec)
        await _watched(story, 30)

    run_virtually(main)


def late_stop() -> None:
    """A replica that was stopped while its operation was taken over asks for what that operation once was to do."""

    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node=_NODE)
        uid, agent = story.instance("web-1").uid, story.cluster.nodes[_NODE].agent
        assert agent is not None
        with contextlib.suppress(StaleClaim):
            await agent.stop_guest(Caller("operations/old", "stop", 1), uid=uid, grace_period_s=0.0)
        assert story.cluster.world.running_on(uid) == [_NODE], "a superseded caller stopped the guest"

    run_virtually(main)


def undone_start() -> None:
    """A start fails and is undone. Then a copy of the call arrives, which the network has kept."""

    async def main() -> None:
        is_unlucky = False

        async def fail(_node: str, method: str) -> None:
            if is_unlucky and method == "after start_guest":
                raise HypervisorError("out of luck")

        def keep(_node: str, method: str) -> float | None:
            return 5.0 if is_unlucky and method == "start_guest" else None

        story = Story(repeats=keep)
        await story.begin(agent_hook=fail)
        await story.launched("web-1", node=_NODE)
        await story.ended(await story.submit("web-1", OperationType.STOP, StopArguments(grace_period_s=5.0)))
        is_unlucky = True
        starting = await story.ended(await story.submit("web-1", OperationType.START, StartArguments()))
        assert starting.error is not None, "the start was to fail"
        for _ in range(20):
            await story.clock.sleep(0.5)
            assert not story.cluster.world.running_on(story.instance("web-1").uid), "what was undone happened after all"

    run_virtually(main)


def late_proof() -> None:
    """A leader dies while its write of a proof is on its way. It arrives when the host is back and another leads."""

    async def main() -> None:
        way = _Way()

        def wrap(store: Store, name: str) -> Store:
            return _LongWayStore(store, way, clock=VirtualClock()) if name == "control-1" else store

        story = Story(wrap_store=wrap)
        await story.begin()
        await story.launched("web-1", node=_NODE)
        story.cluster.pool.faults[_NODE] = PoolFault.FAILING
        _cut_off(story)
        await story.until(lambda: story.condition(_NODE) is NodeCondition.FENCING, within_s=20.0, what="it is silent")
        way.is_long = True
        await story.until(lambda: way.under_way is not None, within_s=20.0, what="a proof is on its way")
        await story.cluster.controllers["control-1"].kill()
        _rejoin(story)
        await story.until(lambda: story.condition(_NODE) is NodeCondition.READY, within_s=60.0, what="it is back")
        way.arrived.set()
        assert way.under_way is not None
        late = await way.under_way
        assert not late.succeeded, "a leader of the past proved the end of a boot that goes on"

    run_virtually(main)


def lost_answer() -> None:
    """A request is written, and the store's answer is lost: whoever asked hears that it was done."""

    async def main() -> None:
        story = Story()
        armed = False

        async def lose_answer(method: str) -> None:
            nonlocal armed
            if armed and method == "after transact":
                armed = False
                raise StoreIndefinite("the answer was lost")

        first = await story.begin(store_hook=lose_answer)
        await story.launched("web-1", node=_NODE)
        armed = True
        stopping = await story.submit("web-1", OperationType.STOP, StopArguments(grace_period_s=5.0), through=first)
        await story.ended(stopping)

    run_virtually(main)


def two_requests() -> None:
    """Two replicas are asked at the same moment to act on one instance: one of them begins, the other refuses."""

    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node=_NODE)
        asked = [
            story.submit("web-1", OperationType.STOP, StopArguments(grace_period_s=5.0), through=controller)
            for controller in story.cluster.controllers.values()
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        begun = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(begun) == 1, f"{len(begun)} operations on one instance began at once"

    run_virtually(main)


def stale_view() -> None:
    """A replica whose picture lags places an instance where another replica has just taken the last room."""

    async def main() -> None:
        climate = Climate(_NO_CHANCE, VirtualClock())
        story = Story(wrap_store=climate.wrap_store, node_memory_mib=2560)
        await story.begin()
        climate.at_store("control-2").stalled = True
        await story.ended(await story.create("web-1", node=_NODE, memory_mib=2048))
        second = story.cluster.controllers["control-2"]
        await story.create("web-2", node=_NODE, memory_mib=2048, through=second)
        await story.clock.sleep(5.0)
        story.check()

    run_virtually(main)


async def _watched(story: Story, seconds: int) -> None:
    for _ in range(seconds):
        await story.clock.sleep(1.0)
        story.check()


def two_pools() -> None:
    """A host without etcd beats in one of two shared pools: its guests run on, and are started nowhere else."""

    async def main() -> None:
        story = Story(second_pool=True)
        await story.begin()
        await story.launched("web-1", node=_NODE)
        # The agent cannot reach the pool, while the guest's disk is open and goes on working.
        story.cluster.pool.faults[_NODE] = PoolFault.FAILING
        _cut_off(story)
        await _watched(story, 60)

    run_virtually(main)


def own_disks() -> None:
    """A guest on its host's own disk is started, the answer is lost, and the host fenced: no guard ends it there.

    So the undo has to wait until it can be ended.
    """

    async def main() -> None:
        story = Story(local_pools=True)

        async def lose_answer(node: str, method: str) -> None:
            if method == "after start_guest" and story.has_instance("web-1"):
                if story.instance("web-1").state is not InstanceState.STOPPED:
                    return
                _cut_off(story)
                raise AgentIndefinite("the answer was lost")

        await story.begin(agent_hook=lose_answer)
        local = local_pool_id(_NODE)
        story.cluster.pools[local].images[DIGEST] = story.cluster.pool.images[DIGEST]
        created = await story.ended(await story.create("web-1", node=_NODE, pool_id=local))
        assert created.error is None, created.error
        await story.ended(await story.submit("web-1", OperationType.STOP, StopArguments(grace_period_s=5.0)))
        story.cluster.pool.faults[_NODE] = PoolFault.FAILING
        starting = await story.submit("web-1", OperationType.START, StartArguments())
        await story.clock.sleep(60.0)
        _rejoin(story)
        await story.ended(starting, within_s=400.0)
        await story.clock.sleep(30.0)
        instance = story.instance("web-1")
        wanted = [_NODE] if instance.state is InstanceState.ACTIVE else []
        found = story.cluster.world.running_on(instance.uid)
        assert found == wanted, f"web-1 is {instance.state}, and runs on {found}"

    run_virtually(main)


def late_answers() -> None:
    """A host hears of its lease's renewals late, and then of nothing any more. The guard is in time all the same."""
    for tenths in range(0, 20, 2):
        run_virtually(_late_answers(0.1 * tenths))


def _late_answers(phase_s: float) -> Callable[[], Coroutine[Any, Any, None]]:
    async def main() -> None:
        late = _Late()

        def wrap(store: Store, name: str) -> Store:
            return _LateStore(store, late, clock=story.clock) if name == _NODE else store

        story = Story(wrap_store=wrap)
        await story.begin()
        await story.launched("web-1", node=_NODE)
        late.seconds = 0.9
        story.cluster.pool.faults[_NODE] = PoolFault.FAILING
        await story.clock.sleep(12.0 + phase_s)
        _cut_off(story)
        await _watched(story, 30)

    return main


class _Late:
    """By how much answers are late."""

    seconds = 0.0


class _LateStore(WeatheredStore):
    """A store whose calls arrive at once, and whose answers are late."""

    def __init__(self, store: Store, late: _Late, *, clock: Clock) -> None:
        super().__init__(store, Weather(), rng=_NO_CHANCE, clock=clock)
        self._late_by = late

    async def _back(self, answer: T) -> T:
        await self._clock.sleep(self._late_by.seconds)
        return answer


class _Way:
    """The way of a write to the store."""

    def __init__(self) -> None:
        self.is_long = False
        self.under_way: asyncio.Task[Transaction] | None = None
        self.arrived = asyncio.Event()


class _LongWayStore(WeatheredStore):
    """A store to which the writes of proofs take until somebody says that they have arrived."""

    def __init__(self, store: Store, way: _Way, *, clock: Clock) -> None:
        super().__init__(store, Weather(), rng=_NO_CHANCE, clock=clock)
        self._way = way

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        if not self._way.is_long or not any(each.key.startswith(keys.FENCES) for each in mutations):
            return await super().transact(conditions, mutations)
        if self._way.under_way is None:
            work = self._arrive(conditions, mutations)
            self._way.under_way = asyncio.get_running_loop().create_task(work, context=Context())
        return await asyncio.shield(self._way.under_way)

    async def _arrive(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        await self._way.arrived.wait()
        return await self._store.transact(conditions, mutations)


def _cut_off(story: Story) -> None:
    for other in (STORE, CONTROLLERS, *story.cluster.nodes):
        if other != _NODE:
            story.cluster.network.cut(_NODE, other)


def _rejoin(story: Story) -> None:
    story.cluster.pool.faults.clear()
    for other in (STORE, CONTROLLERS, *story.cluster.nodes):
        if other != _NODE:
            story.cluster.network.heal(_NODE, other)
