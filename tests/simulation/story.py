"""A simulated cluster that tells what it saw, and checks all along that nothing forbidden happens."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from leeward import keys
from leeward.agent.types import DiskFormat, GuestState, ImageFile, Nic
from leeward.clock import SeededIds
from leeward.store.port import KeyValue, Range
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.node import Node, NodeCondition
from leeward_controller.domain.operation import Arguments, CreateArguments, Operation, OperationType
from leeward_controller.operations.submit import Requester
from leeward_controller.records import ALLOCATIONS, FENCES, INSTANCES, NODES, OPERATIONS, Stored
from leeward_lab.simulated.cluster import POOL_ID, SimulatedCluster, SimulatedController
from leeward_lab.simulated.link import CallHook
from leeward_lab.simulated.link import no_hook as no_call_hook
from leeward_lab.simulated.stores import StoreHook
from leeward_lab.simulated.stores import no_hook as no_store_hook
from leeward_lab.virtual_time import VirtualClock

DIGEST = "ab" * 32
ALICE = Requester(principal="client:alice")


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch during which a guest could write its disk on a node."""

    uid: str
    node: str
    epoch: int
    began_s: float


class Invariants:
    """What must never happen, checked at the instant at which it would."""

    def __init__(self, story: "Story") -> None:
        self._story = story
        self.running: dict[str, Run] = {}
        self.runs: list[Run] = []

    def on_run_change(self, uid: str, node: str, running: bool, epoch: int) -> None:
        """Called in the instant in which a guest begins or ceases to be able to write its disk."""
        now_s = self._story.now_s
        self._story.tell(f"{uid[:6]} {'runs' if running else 'ends'} on {node} (epoch {epoch})")
        if not running:
            assert self.running.pop(uid).node == node
            return
        other = self.running.get(uid)
        assert other is None, f"{uid} runs on {node} while it still runs on {other.node if other else ''}"
        earlier = [run for run in self.runs if run.uid == uid]
        if earlier and earlier[-1].node != node:
            self._check_move(earlier[-1], node)
        assert not earlier or epoch >= earlier[-1].epoch, f"the run epoch of {uid} went back to {epoch}"
        self.running[uid] = Run(uid, node, epoch, now_s)
        self.runs.append(self.running[uid])

    def _check_move(self, earlier: Run, node: str) -> None:
        """A guest turns up elsewhere either by migration from a living host or after a proof for a dead one."""
        host = self._story.cluster.nodes[earlier.node]
        if host.host.powered and host.agent is not None:
            return
        proofs = [key for key in self._story.stored_keys(keys.FENCES) if f"/{earlier.node}/" in key]
        migrating = any(task for task in host.host.migrations) if host.host.powered else False
        assert proofs or migrating, f"{earlier.uid} started on {node} without a proof for {earlier.node}"


class Story:
    """One run: a cluster, two controllers, instances, and a log in virtual time."""

    def __init__(self, *, seed: int = 0, nodes: int = 3, controllers: int = 2) -> None:
        self.rng = random.Random(seed)
        self.lines: list[str] = []
        self.invariants = Invariants(self)
        self.clock = VirtualClock()
        self.cluster = SimulatedCluster(
            clock=self.clock,
            ids=SeededIds(seed),
            rng=self.rng,
            nodes=nodes,
            on_run_change=self.invariants.on_run_change,
        )
        self._names = [f"control-{number}" for number in range(1, controllers + 1)]

    @property
    def now_s(self) -> float:
        """Virtual seconds since the story began."""
        return self.clock.monotonic_s()

    def tell(self, line: str) -> None:
        """Add a line to the log."""
        self.lines.append(f"{self.now_s:9.3f}  {line}")

    async def begin(
        self, *, store_hook: StoreHook = no_store_hook, agent_hook: CallHook = no_call_hook
    ) -> SimulatedController:
        """Power everything on and wait until it is ready; the hooks surround the first controller's calls."""
        await self.cluster.start_nodes()
        first = self.cluster.add_controller(self._names[0])
        first.start(store_hook=store_hook, agent_hook=agent_hook)
        for name in self._names[1:]:
            self.cluster.add_controller(name).start()
        size = ImageFile(DIGEST, 1024**2, 1024**3, DiskFormat.RAW)
        self.cluster.pool.images[DIGEST] = size
        await self.until(self._is_ready, within_s=30.0, what="all nodes are registered and guarded")
        return first

    def _is_ready(self) -> bool:
        cores = [c.core for c in self.cluster.controllers.values() if c.core]
        return all(
            core.view.synced
            and len(core.view.nodes) == len(self.cluster.nodes)
            and all(n.value.report.guard_armed for n in core.view.nodes.values())
            and core.runner.is_registered
            for core in cores
        )

    async def until(self, condition: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Wait in virtual time; fails with the whole story when it does not come true."""
        deadline_s = self.now_s + within_s
        while not condition():
            self.cluster.check_parts()
            assert self.now_s < deadline_s, f"not within {within_s:g} s: {what}\n" + self.text()
            await self.clock.sleep(0.05)

    def text(self) -> str:
        """The log."""
        return "\n".join(self.lines[-200:])

    def core(self) -> SimulatedController:
        """A controller that is up, the first by name."""
        return next(c for _, c in sorted(self.cluster.controllers.items()) if c.core is not None)

    async def create(self, name: str, *, node: str = "", memory_mib: int = 1024) -> Operation:
        """Ask for an instance."""
        now = self.clock.now()
        core = self.core().core
        assert core is not None
        instance = Instance(
            name=f"projects/p/instances/{name}",
            uid=self.cluster.ids.new(),
            state=InstanceState.BUILDING,
            flavor="flavors/small",
            resources=Resources(1, memory_mib, 2),
            image="projects/p/images/tiny",
            image_digest=DIGEST,
            image_format=DiskFormat.RAW,
            pool_id=POOL_ID,
            nics=(Nic("52:54:00:00:00:01"),),
            create_time=now,
            update_time=now,
            created_by=ALICE.principal,
        )
        return await core.submitter.create(instance, CreateArguments(node=node), ALICE)

    async def submit(self, name: str, wanted: OperationType, arguments: Arguments) -> Operation:
        """Ask for an operation on an instance."""
        core = self.core().core
        assert core is not None
        stored = await core.records.get(INSTANCES, keys.instance(f"projects/p/instances/{name}"))
        assert stored is not None
        return await core.submitter.submit(stored, wanted, arguments, ALICE)

    async def launched(self, name: str, *, node: str = "") -> None:
        """Ask for an instance and wait until it runs."""
        operation = await self.create(name, node=node)
        ended = await self.ended(operation)
        assert ended.error is None, f"{ended.error}\n{self.text()}"

    async def ended(self, operation: Operation, *, within_s: float = 120.0) -> Operation:
        """Wait for an operation's end."""
        key = keys.operation(operation.id)
        await self.until(
            lambda: self._operation(key).phase.ended, within_s=within_s, what=f"{operation.type} {operation.name} ends"
        )
        return self._operation(key)

    def _operation(self, key: str) -> Operation:
        stored: Stored[Operation] = self._records(OPERATIONS.prefix, key)
        return stored.value

    def instance(self, name: str) -> Instance:
        """An instance's record as it is in the store."""
        stored: Stored[Instance] = self._records(INSTANCES.prefix, keys.instance(f"projects/p/instances/{name}"))
        return stored.value

    def condition(self, node: str) -> NodeCondition:
        """A node's condition as it is in the store."""
        stored: Stored[Node] = self._records(NODES.prefix, keys.node(node))
        return stored.value.condition

    def has_instance(self, name: str) -> bool:
        """Whether there is a record of it."""
        return keys.instance(f"projects/p/instances/{name}") in self.stored_keys(keys.INSTANCES)

    def _records(self, prefix: str, key: str) -> "Stored[object]":
        kinds = {kind.prefix: kind for kind in (OPERATIONS, INSTANCES, ALLOCATIONS, FENCES, NODES)}
        found = next((kv for kv in self._list(prefix) if kv.key == key), None)
        assert found is not None, f"{key} is not in the store"
        kind = kinds[prefix]
        value = StateCodec().decode(kind.type, found.value)
        return Stored(key, value, found.mod_revision, found.create_revision)

    def _list(self, prefix: str) -> tuple[KeyValue, ...]:
        """The in-memory store answers without suspending, so one step of the coroutine is all of it."""
        try:
            self.cluster.store.list(prefix).send(None)
        except StopIteration as answer:
            found: Range = answer.value
            return found.items
        raise AssertionError("the in-memory store suspended")

    def stored_keys(self, prefix: str) -> list[str]:
        """The keys in the store below a prefix."""
        return [found.key for found in self._list(prefix)]

    def check_settled(self) -> None:
        """After an end: guests, records, reservations and disks tell one story."""
        recorded = {}
        for key in self.stored_keys(keys.INSTANCES):
            stored: Stored[Instance] = self._records(INSTANCES.prefix, key)
            recorded[stored.value.uid] = stored.value
        for uid, instance in recorded.items():
            where = self.cluster.world.running_on(uid)
            expected = [instance.node] if instance.state is InstanceState.ACTIVE else []
            assert where == expected, f"{instance.name} is {instance.state} on {instance.node}, runs on {where}"
        assert set(self.cluster.pool.disks) <= {u for u, i in recorded.items() if i.state is not InstanceState.ERROR}
        for key in self.stored_keys(keys.ALLOCATIONS):
            allocation = self._records(ALLOCATIONS.prefix, key).value
            held = {r.instance_uid for r in allocation.reservations}  # type: ignore[attr-defined]
            node = key.removeprefix(keys.ALLOCATIONS)
            placed = {uid for uid, i in recorded.items() if i.node == node and i.state is not InstanceState.ERROR}
            assert held == placed, f"{node} holds {held} for {placed}\n{self.text()}"
        for node in self.cluster.nodes.values():
            for uid, guest in node.host.guests.items():
                known = recorded.get(uid)
                active = guest.state in (GuestState.RUNNING, GuestState.PAUSED)
                assert not active or (known is not None and known.node == node.name)
