"""The cluster: a store, a pool, hosts, controllers, and the network between them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from leeward.agent.api import AgentApi
from leeward.clock import Clock, Ids, Rng
from leeward.store.memory import MemoryStore
from leeward.store.port import Store
from leeward_agent.hypervisors.simulated.guest import SimulatedTiming
from leeward_agent.hypervisors.simulated.host import SimulatedWorld
from leeward_agent.storage.memory import MemoryPoolContents
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.adapters.fence_agents import NoFence
from leeward_controller.core import ControllerCore, Policy
from leeward_controller.ports import Fence
from leeward_lab.simulated.link import CallHook, LinkedAgent, Repeats, no_hook, no_repeats
from leeward_lab.simulated.network import CONTROLLERS, STORE, Network
from leeward_lab.simulated.node import SimulatedNode
from leeward_lab.simulated.stores import LinkedStore, StoreHook
from leeward_lab.simulated.stores import no_hook as no_store_hook
from leeward_lab.simulated.tasks import Life
from leeward_lab.virtual_time import thaw

POOL_ID = "shared"
SECOND_POOL_ID = "shared-2"


class SimulatedController:
    """A controller replica that can be killed and drained. `name` is its place in the network."""

    def __init__(self, cluster: "SimulatedCluster", name: str, *, address: str) -> None:
        self.name = name
        self.address = address
        self.core: ControllerCore | None = None
        self._cluster = cluster
        self._life = Life()

    def start(
        self, *, store_hook: StoreHook = no_store_hook, agent_hook: CallHook | None = None, fence: Fence | None = None
    ) -> ControllerCore:
        """Start a new replica; the hooks surround all its calls (`agent_hook` None: that of the cluster)."""
        cluster = self._cluster
        self._life = Life(self.name)
        self.core = ControllerCore(
            store=cluster.linked_store(self.name, hook=store_hook),
            codec=StateCodec(),
            agents=cluster.linked_agents(self.name, hook=agent_hook),
            fence=fence or NoFence(),
            clock=cluster.clock_of(self.name),
            ids=cluster.ids,
            rng=cluster.rng,
            address=self.address,
            policy=cluster.policy,
        )
        self._life.spawn(self.core.run())
        return self.core

    def serve(self, request: Coroutine[Any, Any, None]) -> None:
        """Work on a client's request within this process: it ends when the process does."""
        self._life.spawn(request)

    async def kill(self) -> None:
        """SIGKILL: nothing is handed over, its keys stay until their leases end. It ends even a stopped process."""
        thaw(self.name)
        core, self.core = self.core, None
        if core is not None:
            core.abandon()
        await self._life.end()

    async def stop(self) -> None:
        """SIGTERM: operations are handed over, keys given up."""
        self.core = None
        await self._life.end()

    @property
    def failure(self) -> BaseException | None:
        """What ended the replica, if it ended by itself."""
        return self._life.failure


class LinkedAgents:
    """An `Agents` over the simulated network."""

    def __init__(self, cluster: "SimulatedCluster", hook: CallHook) -> None:
        self._cluster = cluster
        self._hook = hook

    def at(self, *, node: str, address: str) -> AgentApi:
        """The agent of a node, reached as the network stands at each call."""
        simulated = self._cluster.nodes[node]
        return LinkedAgent(
            node,
            find=partial(self._find, simulated),
            broken=partial(self._broken, simulated),
            hook=self._hook,
            repeats=self._cluster.repeats,
            context=simulated.agent_context,
        )

    def _find(self, node: SimulatedNode) -> AgentApi | None:
        return node.agent if self._cluster.network.reaches(node.name, CONTROLLERS) else None

    async def _broken(self, node: SimulatedNode) -> None:
        await self._cluster.broken(node)


WrapStore = Callable[[Store, str], Store]


class SimulatedCluster:
    """All of it, not yet started. With `files`, guests write their console and boot count below that directory.

    With `local_pools`, each host has a pool of its own beside the shared one; with `second_pool` all share another.
    `clocks` gives parts by name a clock of their own that runs a little fast or slow. `wrap_store(store, name)` may
    put something between the store and the part of that name, beside the network. `agent_hooks(name)` surrounds
    what the controller of that name asks of agents; of that, `repeats` tells what arrives twice.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        ids: Ids,
        rng: Rng,
        nodes: int = 3,
        policy: Policy | None = None,
        timing: SimulatedTiming | None = None,
        lease_ttl_s: int = 5,
        node_vcpus: int = 8,
        node_memory_mib: int = 16384,
        files: Path | None = None,
        store_delay_s: float = 0.001,
        local_pools: bool = False,
        second_pool: bool = False,
        clocks: Mapping[str, Clock] | None = None,
        wrap_store: WrapStore | None = None,
        agent_hooks: Callable[[str], CallHook] = lambda _: no_hook,
        repeats: Repeats = no_repeats,
        on_run_change: Callable[[str, str, bool, int], None] | None = None,
    ) -> None:
        self.clock, self.ids, self.rng = clock, ids, rng
        self._clocks = clocks or {}
        self._wrap_store = wrap_store
        self._agent_hooks = agent_hooks
        self.repeats = repeats
        self.policy = policy or Policy()
        self.timing = timing or SimulatedTiming()
        self.lease_ttl_s = lease_ttl_s
        self.node_vcpus, self.node_memory_mib = node_vcpus, node_memory_mib
        self.files = files
        self.store_delay_s = store_delay_s
        self.network = Network()
        self.store = MemoryStore(clock)
        self.pool = MemoryPoolContents(POOL_ID)
        self.pools = {POOL_ID: self.pool}
        if second_pool:
            self.pools[SECOND_POOL_ID] = MemoryPoolContents(SECOND_POOL_ID)
        if local_pools:
            self.pools |= {(own := local_pool_id(name)): MemoryPoolContents(own) for name in node_names(nodes)}
        self.world = SimulatedWorld(on_run_change=on_run_change, reaches=self.network.reaches)
        if files is None:
            for pool in self.pools.values():
                pool.memories = self.world.traces.memories
        self.nodes = {name: SimulatedNode(self, name) for name in node_names(nodes)}
        self.controllers: dict[str, SimulatedController] = {}

    def add_controller(self, name: str, *, address: str = "") -> SimulatedController:
        """A replica, not yet started."""
        controller = SimulatedController(self, name, address=address or f"{name}.simulated:7443")
        self.controllers[name] = controller
        return controller

    def pools_of(self, node: str) -> list[MemoryPoolContents]:
        """The pools of a host: the shared ones first, then its own, where it has one."""
        ids = (POOL_ID, SECOND_POOL_ID, local_pool_id(node))
        return [self.pools[pool_id] for pool_id in ids if pool_id in self.pools]

    def is_shared(self, contents: MemoryPoolContents) -> bool:
        """Whether all hosts have that pool."""
        return contents.pool_id in (POOL_ID, SECOND_POOL_ID)

    def clock_of(self, name: str) -> Clock:
        """The clock that the part of that name goes by."""
        return self._clocks.get(name, self.clock)

    def linked_store(self, name: str, *, hook: StoreHook = no_store_hook) -> LinkedStore:
        """The store as the part of that name reaches it."""
        return LinkedStore(
            self._wrap_store(self.store, name) if self._wrap_store else self.store,
            reaches=partial(self.network.reaches, name, STORE),
            linked=partial(self.network.until_healed, name, STORE),
            delay=partial(self.clock.sleep, self.store_delay_s),
            hook=hook,
        )

    def linked_agents(self, name: str = "", *, hook: CallHook | None = None) -> LinkedAgents:
        """The agents as the controller of that name reaches them."""
        return LinkedAgents(self, hook or self._agent_hooks(name))

    async def start_nodes(self) -> None:
        """Power on every host."""
        for node in self.nodes.values():
            await node.power_on()

    async def broken(self, node: SimulatedNode) -> None:
        """Wait until the link between the controllers and a host's agent breaks."""
        await _first(node.agent_ended(), self.network.until_cut(node.name, CONTROLLERS))

    async def stop(self) -> None:
        """End everything, in an order in which nothing waits for what is gone."""
        for controller in self.controllers.values():
            await controller.stop()
        for node in self.nodes.values():
            await node.power_off()
        await self.store.close()

    def check_parts(self) -> None:
        """Raise what ended a part that should have gone on."""
        failures = [part.failure for part in self.controllers.values()]
        failures += [part.failure for part in self.nodes.values()]
        for failure in failures:
            if failure is not None:
                raise failure


def node_names(count: int) -> list[str]:
    """host-a, host-b, ... or, beyond 26, host-001, ..."""
    if count <= 26:
        return [f"host-{chr(ord('a') + index)}" for index in range(count)]
    return [f"host-{index:03}" for index in range(1, count + 1)]


def local_pool_id(node: str) -> str:
    """The id of a host's own pool, in a cluster where hosts have one."""
    return f"local-{node}"


async def _first(*waits: Awaitable[None]) -> None:
    futures = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
