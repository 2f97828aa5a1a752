"""A simulated cluster that tells what it saw, and checks all along that nothing forbidden happens."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar, cast

from leeward import keys
from leeward.agent.types import DiskFormat, GuestState, ImageFile, Nic
from leeward.clock import SeededIds
from leeward.errors import NotFound
from leeward.store.port import KeyValue, Range
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.adapters.public.peers import GrpcPeers
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.node import Node, NodeAllocation, NodeCondition
from leeward_controller.domain.node_operation import OnFailure
from leeward_controller.domain.operation import Arguments, CreateArguments, Operation, OperationType
from leeward_controller.operations.submit import Requester
from leeward_controller.ports import Fence
from leeward_controller.records import ALLOCATIONS, BRAKE, INSTANCES, NODES, OPERATIONS, Commit, Kind
from leeward_controller.services.everything import Services
from leeward_controller.services.instances import Target
from leeward_lab.simulated.cluster import POOL_ID, SimulatedCluster, SimulatedController
from leeward_lab.simulated.link import CallHook
from leeward_lab.simulated.serving import services_of
from leeward_lab.simulated.stores import StoreHook
from leeward_lab.simulated.stores import no_hook as no_store_hook
from leeward_lab.virtual_time import VirtualClock
from tests.simulation.invariants import Invariants
from tests.simulation.narrator import Narrator

T = TypeVar("T")

DIGEST = "ab" * 32
IMAGE = "projects/p/images/tiny"
ALICE = Requester(principal="client:alice")


class Story:
    """One run: a cluster, two controllers, instances, and a log in virtual time."""

    def __init__(
        self,
        *,
        seed: int = 0,
        nodes: int = 3,
        controllers: int = 2,
        steps: bool = False,
        decimals: int = 3,
        **cluster: Any,
    ) -> None:
        """`steps` tells each step of an operation too, `decimals` how exactly to tell times; the rest is for the
        cluster.
        """
        self.rng = random.Random(seed)
        self.lines: list[str] = []
        self.clock = VirtualClock()
        self.narrator = Narrator(self.tell, steps=steps)
        self.invariants = Invariants(now_s=self.clock.monotonic_s, tell=self.tell, plain=self.narrator.plain)
        self.narrator.listen(self.invariants.on_record)
        self.cluster = SimulatedCluster(
            clock=self.clock,
            ids=SeededIds(seed),
            rng=self.rng,
            nodes=nodes,
            on_run_change=self.invariants.on_run_change,
            **cluster,
        )
        self.invariants.watch(self.cluster)
        self._names = [f"control-{number}" for number in range(1, controllers + 1)]
        self._decimals = decimals
        self._began_s = 0.0
        self._telling: asyncio.Task[None] | None = None
        self._decoded: dict[str, tuple[int, object]] = {}

    @property
    def now_s(self) -> float:
        """Virtual seconds since the story began."""
        return self.clock.monotonic_s()

    def tell(self, line: str) -> None:
        """Add a line to the log, with names for ids. Times count from when everything was ready."""
        self.lines.append(f"{self.now_s - self._began_s:9.{self._decimals}f}  {self.narrator.plain(line)}")

    async def begin(
        self,
        *,
        store_hook: StoreHook = no_store_hook,
        agent_hook: CallHook | None = None,
        fence: Fence | None = None,
    ) -> SimulatedController:
        """Power everything on and wait until it is ready; the hooks surround the first controller's calls."""
        self._telling = asyncio.ensure_future(self.narrator.run(self.cluster.store))
        for name in self.cluster.nodes:
            await self.power_on(name)
        first = self.cluster.add_controller(self._names[0])
        first.start(store_hook=store_hook, agent_hook=agent_hook, fence=fence)
        for name in self._names[1:]:
            self.cluster.add_controller(name).start(fence=fence)
        await self.until(self._is_ready, within_s=30.0, what="all nodes are registered and guarded")
        await self._stock()
        return first

    async def _stock(self) -> None:
        """The image that all instances are made of: its file and its record."""
        file = ImageFile(DIGEST, 1024**2, 1024**3, DiskFormat.RAW)
        self.cluster.pool.images[DIGEST] = file
        core = self.core().core
        assert core is not None
        image = Image(
            name=IMAGE,
            uid=self.cluster.ids.new(),
            digest=DIGEST,
            format=file.format,
            size_bytes=file.size_bytes,
            virtual_size_bytes=file.virtual_size_bytes,
            pool_ids=(POOL_ID,),
            create_time=self.clock.now(),
            created_by=ALICE.principal,
        )
        await core.records.commit(Commit().create(keys.image(IMAGE), image))

    async def power_on(self, node: str) -> None:
        """Boot a host."""
        await self.cluster.nodes[node].power_on()
        boot_id = self.cluster.nodes[node].boot_id
        self.narrator.boot(node, boot_id)
        self.invariants.boot(node, boot_id)

    async def end(self) -> None:
        """Stop everything, in order."""
        self.check()
        await self.cluster.stop()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    def check(self) -> None:
        """Raise what has broken, wherever it did."""
        self.invariants.check()
        self.cluster.check_parts()
        if self._telling is not None and self._telling.done():
            self._telling.result()

    def begin_counting(self) -> None:
        """Forget the log so far, and let time begin now."""
        self._began_s = self.now_s
        self.lines.clear()

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
            self.check()
            assert self.now_s < deadline_s, f"not within {within_s:g} s: {what}\n" + self.text()
            await self.clock.sleep(0.05)

    async def until_time(self, seconds: float) -> None:
        """Wait until so many seconds have passed since counting began."""
        left_s = self._began_s + seconds - self.now_s
        assert left_s >= 0, f"{seconds:g} s have passed already"
        await self.clock.sleep(left_s)

    def text(self) -> str:
        """The log."""
        return "\n".join(self.lines[-200:])

    def core(self) -> SimulatedController:
        """A controller that is up, the first by name."""
        return next(c for _, c in sorted(self.cluster.controllers.items()) if c.core is not None)

    async def create(
        self,
        name: str,
        *,
        node: str = "",
        pool_id: str = POOL_ID,
        memory_mib: int = 1024,
        labels: dict[str, str] | None = None,
        group: str = "",
        through: SimulatedController | None = None,
        requester: Requester = ALICE,
    ) -> Operation:
        """Ask for an instance; `group` is the id of one that is there."""
        now = self.clock.now()
        core = (through or self.core()).core
        assert core is not None
        instance = Instance(
            name=f"projects/p/instances/{name}",
            uid=self.cluster.ids.new(),
            state=InstanceState.BUILDING,
            flavor="flavors/small",
            resources=Resources(1, memory_mib, 2),
            image=IMAGE,
            image_digest=DIGEST,
            image_format=DiskFormat.RAW,
            pool_id=pool_id,
            nics=(Nic("52:54:00:00:00:01"),),
            create_time=now,
            update_time=now,
            created_by=requester.principal,
            labels=labels or {},
            group=f"projects/p/groups/{group}" if group else "",
        )
        self.narrator.names[instance.uid] = name
        return await core.submitter.create(instance, CreateArguments(node=node), requester)

    async def submit(
        self,
        name: str,
        wanted: OperationType,
        arguments: Arguments,
        *,
        through: SimulatedController | None = None,
        requester: Requester = ALICE,
    ) -> Operation:
        """Ask for an operation on an instance. Raises NotFound, and what the submitter raises."""
        core = (through or self.core()).core
        assert core is not None
        stored = await core.records.get(INSTANCES, keys.instance(f"projects/p/instances/{name}"))
        if stored is None:
            raise NotFound.named(f"projects/p/instances/{name}")
        return await core.submitter.submit(stored, wanted, arguments, requester)

    async def drain(
        self, node: str, *, parallelism: int = 0, through: SimulatedController | None = None, **wishes: Any
    ) -> Operation:
        """Ask for a node to be drained. Raises what the service raises."""
        usual: dict[str, Any] = {
            "retries": None,
            "on_failure": OnFailure.CONTINUE,
            "enter_maintenance": True,
            "reason": "",
        }
        operations = self.services(through).node_operations
        target = Target(f"nodes/{node}")
        return (await operations.drain(target, ALICE, parallelism=parallelism, **(usual | wishes))).operation

    async def launched(self, name: str, *, node: str = "", labels: dict[str, str] | None = None) -> None:
        """Ask for an instance and wait until it runs."""
        operation = await self.create(name, node=node, labels=labels)
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
        return self._record(OPERATIONS, key)

    def instance(self, name: str) -> Instance:
        """An instance's record as it is in the store."""
        return self._record(INSTANCES, keys.instance(f"projects/p/instances/{name}"))

    def node(self, node: str) -> Node:
        """A node's record as it is in the store."""
        return self._record(NODES, keys.node(node))

    def condition(self, node: str) -> NodeCondition:
        """A node's condition as it is in the store."""
        return self.node(node).condition

    def operation(self, operation_id: str) -> Operation:
        """An operation's record as it is in the store."""
        return self._operation(keys.operation(operation_id))

    def braked(self) -> bool:
        """Whether the brake on evacuation is on, and not released."""
        return any(brake.holds for brake in self.all_of(BRAKE))

    def has_instance(self, name: str) -> bool:
        """Whether there is a record of it."""
        return keys.instance(f"projects/p/instances/{name}") in self.stored_keys(keys.INSTANCES)

    def _record(self, kind: Kind[T], key: str) -> T:
        found = next((kv for kv in self._list(kind.prefix) if kv.key == key), None)
        assert found is not None, f"{key} is not in the store"
        return StateCodec().decode(kind.type, found.value)

    def all_of(self, kind: Kind[T]) -> list[T]:
        """All records of a kind in the store."""
        return [self._decoded_of(kind, found) for found in self._list(kind.prefix)]

    def _decoded_of(self, kind: Kind[T], found: KeyValue) -> T:
        """Decoded once for each version, since it is asked for again and again."""
        revision, value = self._decoded.get(found.key, (0, None))
        if revision != found.mod_revision:
            value = StateCodec().decode(kind.type, found.value)
            self._decoded[found.key] = found.mod_revision, value
        return cast(T, value)

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

    def services(self, through: SimulatedController | None = None) -> Services:
        """What the public API of a controller that is up is served from."""
        core = (through or self.core()).core
        assert core is not None
        return services_of(self.cluster, core, GrpcPeers(tls=None))

    def instances(self) -> dict[str, Instance]:
        """All instances' records in the store, by uid."""
        return {instance.uid: instance for instance in self.all_of(INSTANCES)}

    def allocations(self) -> dict[str, NodeAllocation]:
        """What is reserved, by node."""
        return {allocation.node: allocation for allocation in self.all_of(ALLOCATIONS)}

    def running_operations(self) -> list[Operation]:
        """Those that have not ended."""
        return [operation for operation in self.all_of(OPERATIONS) if not operation.phase.ended]

    def unsettled(self) -> list[str]:
        """Where guests, records, reservations and disks do not tell one story; empty when all is well."""
        recorded, wrong = self.instances(), []
        for uid, instance in recorded.items():
            where = self.cluster.world.running_on(uid)
            if where != ([] if instance.wanted_guest is GuestState.STOPPED else [instance.node]):
                wrong.append(f"{instance.name} is {instance.state} on {instance.node or 'no node'}, runs on {where}")
        kept = {uid for uid, instance in recorded.items() if instance.node}
        disks = set(self.cluster.pool.disks)
        wrong += [f"the disk of {uid} is left behind" for uid in sorted(disks - kept)]
        wrong += [f"the disk of {uid} is gone" for uid in sorted(kept - disks)]
        for node, allocation in sorted(self.allocations().items()):
            held = {r.instance for r in allocation.reservations}
            placed = {i.name for i in recorded.values() if node in i.holding_nodes}
            if held != placed:
                wrong.append(f"{node} is reserved for {sorted(held)}, while {sorted(placed)} are on it")
        for host in self.cluster.nodes.values():
            for uid, guest in sorted(host.host.guests.items()):
                known = recorded.get(uid)
                if guest.active and (known is None or known.node != host.name):
                    wrong.append(f"{uid} is {guest.state} on {host.name}, where it does not belong")
        return [self.narrator.plain(line) for line in wrong]

    def check_settled(self) -> None:
        """After an end: guests, records, reservations and disks tell one story."""
        self.check()
        wrong = self.unsettled()
        assert not wrong, "\n".join([*wrong, self.text()])
