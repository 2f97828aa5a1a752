"""One sequence's cluster: shared and local pools, two replicas, a catalog, failures, and calls by users."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from leeward import keys
from leeward.agent.types import DiskFormat
from leeward.errors import LeewardError
from leeward_controller.adapters.public.peers import GrpcPeers
from leeward_controller.core import Policy
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.domain.group import Group, GroupPolicy
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.node_operation import OnFailure
from leeward_controller.domain.operation import Operation, OperationType
from leeward_controller.domain.project import Project, Quota
from leeward_controller.domain.transitions import Action
from leeward_controller.operations.submit import Requester
from leeward_controller.records import Commit
from leeward_controller.services.everything import Services
from leeward_controller.services.instances import Target
from leeward_lab.simulated.cluster import POOL_ID, SimulatedController, local_pool_id
from leeward_lab.simulated.serving import services_of
from tests.simulation.sequences.coverage import Coverage
from tests.simulation.sequences.failures import Failures
from tests.simulation.sequences.history import History
from tests.simulation.sequences.model import Asking, Version, judge
from tests.simulation.sequences.requests import ASKING, IMAGES, PROJECT, Call, is_soft, lock_reason
from tests.simulation.sequences.settled import Drift, Left
from tests.simulation.story import Story

QUOTA = Quota(instances=5, vcpus=14, memory_mib=20_000)
RETENTION_S = 300.0
_OPS = Requester("client:ops", admin=True)
_SIZES = {"small": (1, 512, 1), "medium": (2, 2048, 2), "large": (4, 5120, 4)}
_LONGEST_S = 400.0
_SETTLE_S = 900.0
_STUCK_S = 200.0  # Longer than what waits for something else is given.
_CALM_S = 20.0
_UNTIL_SWEPT_S = 2 * 600.0


class LostCall(Exception):
    """The replica that was asked died before it answered."""


class World:
    """A cluster and those who use it."""

    def __init__(self, *, seed: int, nodes: int, coverage: Coverage) -> None:
        self.coverage = coverage
        self.failures = Failures(coverage)
        self.story = Story(
            seed=seed,
            nodes=nodes,
            steps=True,
            policy=Policy(deleted_retention_s=RETENTION_S),
            node_memory_mib=8192,
            local_pools=True,
            wrap_store=self.failures.wrap_store,
            agent_hooks=self.failures.agent_hooks,
        )
        self.history = History(tell=self.story.tell, coverage=coverage)
        self._following: asyncio.Task[None] | None = None
        self._peers = GrpcPeers(tls=None)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the hosts."""
        return tuple(sorted(self.story.cluster.nodes))

    async def begin(self) -> None:
        """Power everything on, and put in what launching needs."""
        self.failures.begin(self.story)
        self._following = asyncio.ensure_future(self.history.run(self.story.cluster.store))
        await self.story.begin()
        await self._stock()
        self.story.begin_counting()

    async def end(self) -> None:
        """Stop everything."""
        await self.story.end()
        self.coverage.virtual_s += self.story.now_s
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def check(self) -> None:
        """Raise what has broken."""
        self.story.check()
        self.history.check()
        if self._following is not None and self._following.done():
            self._following.result()

    async def _stock(self) -> None:
        now, ids = self.story.clock.now(), self.story.cluster.ids
        commit = Commit()
        project = Project(PROJECT.rpartition("/")[2], ids.new(), QUOTA, now)
        commit.create(keys.project(project.project), project)
        for flavor, (vcpus, memory_mib, disk_gib) in _SIZES.items():
            commit.create(keys.flavor(flavor), Flavor(flavor, ids.new(), vcpus, memory_mib, disk_gib, now))
        for group, policy in (
            ("apart", GroupPolicy.ANTI_AFFINITY),
            ("loosely-apart", GroupPolicy.SOFT_ANTI_AFFINITY),
            ("together", GroupPolicy.SOFT_AFFINITY),
        ):
            name = f"{PROJECT}/groups/{group}"
            commit.create(keys.group(name), Group(name, ids.new(), policy, now))
        for image in (*IMAGES, "rescue"):
            name = f"{PROJECT}/images/{image}"
            commit.create(keys.image(name), await self._uploaded(name))
        core = self.story.core().core
        assert core is not None
        await core.records.commit(commit)

    async def _uploaded(self, name: str) -> Image:
        """An image whose file lies in the shared pool; the one called `other` only in a local one."""
        node = self.nodes[0]
        pool_id = local_pool_id(node) if name.endswith("other") else POOL_ID
        agent = self.story.cluster.nodes[node].agent
        assert agent is not None
        content = hashlib.sha256(name.encode()).digest() * 128
        file = await agent.store_image(
            pool_id=pool_id,
            digest=hashlib.sha256(content).hexdigest(),
            format=DiskFormat.RAW,
            size_bytes=len(content),
            chunks=_once(content),
        )
        return Image(
            name=name,
            uid=self.story.cluster.ids.new(),
            digest=file.digest,
            format=file.format,
            size_bytes=file.size_bytes,
            virtual_size_bytes=file.virtual_size_bytes,
            pool_ids=(pool_id,),
            create_time=self.story.clock.now(),
            created_by="client:ops",
        )

    def up(self) -> list[SimulatedController]:
        """The replicas that are up, by name."""
        return [c for _, c in sorted(self.story.cluster.controllers.items()) if c.core is not None]

    async def ask(self, wanted: Action, name: str, *, through: int, number: int, admin: bool) -> Operation | None:
        """Make a call and hold its answer against the table; the operation that it began, if it did."""
        if not self.up():
            return None
        controller = self.up()[through % len(self.up())]
        principal = "client:ops" if admin else "client:alice"
        short = name.rpartition("/")[2]
        self.story.tell(f"{principal} asks {controller.name}: {wanted} {short} ({number})")
        with self.history.versions(name) as versions:
            refused: LeewardError | None = None
            answer: Any = None
            try:
                answer = await self.within(controller, self._call(wanted, name, controller, number, admin))
            except LeewardError as error:
                refused = error
                self.story.tell(f"refused: {error.specific_reason}: {error.message}")
                self.coverage.refusals[error.specific_reason] += 1
            except LostCall:
                self.story.tell("the replica died before it answered")
                return None
        if wanted is OperationType.CREATE:
            versions = [Version(None)]  # It is about what does not exist yet.
        soft = wanted is OperationType.REBOOT and is_soft(number)
        asking = Asking(wanted, principal, admin, soft=soft, lock_reason=lock_reason(number))
        wrong = judge(versions, asking, refused)
        assert not wrong, wrong
        operation = getattr(answer, "operation", answer)
        return operation if isinstance(operation, Operation) else None

    async def _call(self, wanted: Action, name: str, controller: SimulatedController, number: int, admin: bool) -> Any:
        core = controller.core
        assert core is not None
        call = Call(
            services=services_of(self.story.cluster, core, self._peers),
            core=core,
            target=Target(name),
            requester=Requester("client:ops" if admin else "client:alice", admin=admin),
            number=number,
            nodes=self.nodes,
        )
        return await ASKING[wanted](call)

    async def within(self, controller: SimulatedController, request: Coroutine[Any, Any, Any]) -> Any:
        """Serve a request within a replica's process. Raises LostCall when that dies, and what the request raises."""
        core, answer = controller.core, asyncio.get_running_loop().create_future()

        async def serve() -> None:
            try:
                result = await request
            except LeewardError as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(result)

        controller.serve(serve())
        deadline_s = self.story.now_s + 120.0
        while not answer.done():
            self.check()
            if controller.core is not core:
                raise LostCall
            assert self.story.now_s < deadline_s, "a call was not answered within 120 s"
            await asyncio.wait({answer}, timeout=0.02)
        return answer.result()

    async def cancel(self, operation: Operation, *, through: int) -> None:
        """Ask an operation to stop, which may be too late."""
        self.coverage.failures["cancellations"] += 1
        await self._serve(
            f"cancel {operation.type} {operation.subject}",
            through,
            lambda services: services.operations.cancel(operation.name, _OPS),
        )

    async def drain(self, node: str, *, number: int, through: int) -> Operation | None:
        """Ask for a node to be emptied, unless another one is."""
        if any(self.story.node(each).cordoned for each in self.nodes):
            return None  # What runs needs somewhere to go.
        shown = await self._serve(
            f"drain {node}",
            through,
            lambda services: services.node_operations.drain(
                Target(f"nodes/{node}"),
                _OPS,
                parallelism=1 + number % 3,
                retries=number % 2,
                on_failure=tuple(OnFailure)[number % 2],
                enter_maintenance=number % 3 == 0,
                reason="",
            ),
        )
        return getattr(shown, "operation", None)

    async def uncordon(self, node: str, *, bring_back: bool, through: int) -> None:
        """Let a node take instances again, and bring back what was drained off it if asked."""
        await self._serve(
            f"uncordon {node}{' and bring back' if bring_back else ''}",
            through,
            lambda services: services.nodes.uncordon(Target(f"nodes/{node}"), _OPS, bring_back=bring_back),
        )

    async def attest(self, node: str, *, through: int) -> None:
        """Say that the boot of a node that is known is over."""
        boot_id = self.story.node(node).report.boot_id
        await self._serve(
            f"attest that {node} is off",
            through,
            lambda services: services.nodes.attest_fenced(
                Target(f"nodes/{node}"), _OPS, boot_id=boot_id, evidence="it is dark"
            ),
        )

    async def _serve(self, told: str, through: int, act: Callable[[Services], Coroutine[Any, Any, Any]]) -> Any:
        """A call of which every refusal is as good as another."""
        if not self.up():
            return None
        controller = self.up()[through % len(self.up())]
        core = controller.core
        assert core is not None
        self.story.tell(f"client:ops asks {controller.name}: {told}")
        try:
            return await self.within(controller, act(services_of(self.story.cluster, core, self._peers)))
        except LeewardError as error:
            self.story.tell(f"refused: {error.specific_reason}: {error.message}")
        except LostCall:
            self.story.tell("the replica died before it answered")
        return None

    def pool_of(self, node: str, *, local: bool) -> str:
        """The id of one of a node's pools."""
        return local_pool_id(node) if local else POOL_ID

    async def until_ended(self, operation: Operation) -> None:
        """Wait until an operation has ended; not for ever, for it may wait for the end of a failure."""
        deadline_s = self.story.now_s + _LONGEST_S
        while self.story.now_s < deadline_s:
            self.check()
            known = self.history.operations.get(operation.name)
            if known is not None and known.phase.ended:
                return
            await self.story.clock.sleep(0.05)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        until_s = self.story.now_s + seconds
        while (left_s := until_s - self.story.now_s) > 0:
            await self.story.clock.sleep(min(1.0, left_s))
            self.check()

    async def settle(self, *, sweeps: bool = False) -> None:
        """End all failures and wait until nothing is open; then it must stay so, and there must be no drift.

        Files are made old for that, so that what waits an hour is done; with `sweeps` the leader's own sweep is waited
        for.
        """
        # An agent takes longer to come back than a hypervisor to do what the one before has asked of it.
        await self.pass_time(0.5)
        await self.failures.end_all()
        self.story.tell("all failures have ended")
        drift = Drift(self.story)
        await self._until_calm(drift)
        kept = self._kept(await drift.now())
        drift.make_old()
        found = await drift.mend() if kept else []
        if sweeps:
            await self.pass_time(_UNTIL_SWEPT_S)
        else:
            await drift.sweep()
        found += [
            *(each.text for each in await drift.now()),
            *await drift.of_images(),
            *await drift.audited(),
            *await drift.over_quota(PROJECT.rpartition("/")[2], QUOTA),
        ]
        assert not found, "drift:\n" + "\n".join(found)
        self.coverage.mended += len(kept)

    async def _until_calm(self, drift: Drift) -> None:
        deadline_s, calm_since_s = self.story.now_s + _SETTLE_S, None
        before: list[str] = []
        changed_s = self.story.now_s
        while calm_since_s is None or self.story.now_s - calm_since_s < _CALM_S:
            await self.story.clock.sleep(1.0)
            self.check()
            found = await drift.now()
            kept = self._kept(found)
            left = [*self._open_ends(), *(each.text for each in found if each not in kept)]
            if not left:
                calm_since_s = calm_since_s or self.story.now_s
                continue
            calm_since_s = None
            await self._release_quarantined()
            if left != before:
                before, changed_s = left, self.story.now_s
            if self.story.now_s >= deadline_s or self.story.now_s - changed_s >= _STUCK_S:
                raise AssertionError("all failures have ended, and it does not settle:\n" + "\n".join(left))

    def _kept(self, found: list[Left]) -> list[Left]:
        """What lost nodes have kept of instances that were deleted or restarted meanwhile: for an audit to mend."""
        return [each for each in found if each.on in self.history.fenced]

    def _open_ends(self) -> list[str]:
        ends = [f"{o.type} {o.subject} is at {o.step} ({o.phase})" for o in self.story.running_operations()]
        for node in self.nodes:
            condition = self.story.condition(node)
            if condition is not NodeCondition.READY:
                ends.append(f"{node} is {condition}")
        return ends

    async def _release_quarantined(self) -> None:
        """As an operator does, who lets returned nodes work again."""
        for node in self.nodes:
            if self.story.condition(node) is NodeCondition.QUARANTINED:
                await self.uncordon(node, bring_back=False, through=0)

    def instance(self, name: str) -> Instance | None:
        """An instance as it stands."""
        return self.history.instances.get(name)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
