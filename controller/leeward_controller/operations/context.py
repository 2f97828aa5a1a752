"""What a step sees of the world."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from leeward import keys
from leeward.agent.api import AgentApi
from leeward.agent.types import Caller, MigrationProgress
from leeward.clock import Clock, Rng
from leeward.errors import AgentUnavailable, InternalError, NodeGone
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node
from leeward_controller.domain.node_operation import DrainProgress
from leeward_controller.domain.operation import Arguments, Operation, OperationPhase, OperationType, Work
from leeward_controller.operations.subject import Subject
from leeward_controller.ports import Agents, Fence
from leeward_controller.records import Records, Stored
from leeward_controller.scheduler.candidates import shared_pools
from leeward_controller.scheduler.placement import PlacementPolicy
from leeward_controller.view import ClusterView


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all steps share."""

    records: Records
    view: ClusterView
    agents: Agents
    clock: Clock
    rng: Rng
    policy: PlacementPolicy
    fence: Fence


Progress = MigrationProgress | DrainProgress


class Children(Protocol):
    """Begins and ends operations that are part of another one."""

    async def begin_child(
        self, parent: Operation, instance: Stored[Instance], wanted: OperationType, arguments: Arguments, *, part: str
    ) -> Operation:
        """Begin an operation on an instance in the name of whoever asked for `parent`.

        The same `part` of the same parent is the same operation, however often it is asked for. Raises what
        `Submitter.submit` raises.
        """
        ...

    async def cancel_child(self, name: str) -> None:
        """Ask it to stop; no error when it cannot any more. Raises StoreUnavailable, StoreIndefinite."""
        ...


@dataclass(frozen=True, slots=True)
class StepContext:
    """One step's view: the operation and its instance or node as last read, and the means to act on them.

    `remember` writes down what a long step has found out so far, for whoever takes it over. It raises Superseded.
    `percent_of` tells how much of another operation is done.
    """

    operation: Operation
    subject: Subject
    caller: Caller
    surroundings: Surroundings
    children: Children
    cancelled: asyncio.Event
    tell_progress: Callable[[Progress], None]
    percent_of: Callable[[Operation], int]
    remember: Callable[[Work], Awaitable[None]]

    @property
    def instance(self) -> Instance:
        """The instance that the operation is about."""
        if isinstance(self.subject, Instance):
            return self.subject
        raise InternalError(f"{self.operation.name} is about {self.operation.subject}, not about an instance")

    @property
    def node(self) -> Node:
        """The node that the operation is about."""
        if isinstance(self.subject, Node):
            return self.subject
        raise InternalError(f"{self.operation.name} is about {self.operation.subject}, not about a node")

    @property
    def view(self) -> ClusterView:
        """The replica's picture of the cluster."""
        return self.surroundings.view

    def agent(self, node_id: str) -> AgentApi:
        """The agent of a node.

        Raises NodeGone when the node's present boot is fenced, AgentUnavailable when its heartbeat is not there.
        """
        lease = self.view.leases.get(node_id)
        if lease is None:
            if self.is_fenced(node_id):
                raise NodeGone(f"nodes/{node_id} is fenced")
            raise AgentUnavailable(f"nodes/{node_id} has no heartbeat")
        return self.surroundings.agents.at(node=node_id, address=lease.report.address)

    def agent_to_start(self, node_id: str) -> AgentApi:
        """The agent of a node that is to start a guest.

        Raises what `check_may_receive` and `agent` raise.
        """
        self.check_may_receive(node_id)
        return self.agent(node_id)

    def check_may_receive(self, node_id: str) -> None:
        """Raises NodeGone or AgentUnavailable while a guest that came to run on the node could be taken for dead.

        A node that has come back, by the same boot or another, is fenced until its instances are elsewhere: what was
        started there now would run beside what is restarted elsewhere on the proof, which waits for this operation's
        end. And the boot that is alive must be the recorded one, since a proof for the recorded boot stands for all of
        the node's instances. A record's boot never goes back, so a view that lags errs on the safe side.
        """
        lease, node = self.view.leases.get(node_id), self.view.nodes.get(keys.node(node_id))
        if lease is None or node is None:
            return
        if self.is_fenced(node_id) or keys.fence(node_id, lease.report.boot_id) in self.view.fences:
            raise NodeGone(f"nodes/{node_id} is fenced: its instances are being restarted elsewhere")
        if lease.report.boot_id != node.value.report.boot_id:
            raise AgentUnavailable(f"nodes/{node_id} was rebooted, and its record does not say so yet")

    def is_fenced(self, node_id: str) -> bool:
        """Whether the boot of this node that was last known is proved to be over."""
        node = self.view.nodes.get(keys.node(node_id))
        return node is not None and keys.fence(node_id, node.value.report.boot_id) in self.view.fences

    def agent_to_end(self, node_id: str) -> AgentApi:
        """The agent of a node on which an undo is to end, or to halt, what may have come to run.

        Raises what `agent` raises; but while guests on disks of the node's own may run on although it is fenced, for a
        guard kills no such, that is AgentUnavailable: it has to come back, or be proved to be off. A guest whose
        instance is being deleted is not waited for, since it is started nowhere else.
        """
        try:
            return self.agent(node_id)
        except NodeGone as error:
            undoing = self.operation.phase is OperationPhase.UNDOING
            if not undoing or not self._may_run_on_own_disks(node_id) or self._is_being_deleted():
                raise
            why = "the instance may run on there, on disks of the node's own"
            raise AgentUnavailable(f"{error.message}, but {why}; it has to come back, or be attested off") from error

    def _may_run_on_own_disks(self, node_id: str) -> bool:
        node = self.view.nodes.get(keys.node(node_id))
        if node is None:
            return False
        proof = self.view.fences.get(keys.fence(node_id, node.value.report.boot_id))
        if proof is None or proof.value.kind.speaks_of_own_disks:
            return False
        own = {pool.pool_id for pool in node.value.report.pools} - shared_pools(self.view)
        return not own.isdisjoint({self.instance.pool_id, self.operation.work.target_pool_id})

    def _is_being_deleted(self) -> bool:
        key = keys.operation(self.instance.current_operation.removeprefix("operations/"))
        current = self.view.operations.get(key)
        return current is not None and current.value.type is OperationType.DELETE

    def agent_with_pool(self, pool_id: str, *, preferred: str = "") -> AgentApi:
        """An agent that has the pool, that of `preferred` if possible.

        Raises AgentUnavailable, or NodeGone when the pool is that of a single node, which is fenced.
        """
        leases = self.view.leases
        order = sorted(leases, key=lambda node_id: (node_id != preferred, node_id))
        for node_id in order:
            if any(pool.pool_id == pool_id and pool.healthy for pool in leases[node_id].report.pools):
                return self.surroundings.agents.at(node=node_id, address=leases[node_id].report.address)
        if pool_id not in shared_pools(self.view):
            for stored in self.view.nodes.values():
                had = any(pool.pool_id == pool_id for pool in stored.value.report.pools)
                if had and self.is_fenced(stored.value.node):
                    raise NodeGone(f"nodes/{stored.value.node}, which alone has pool {pool_id}, is fenced")
        raise AgentUnavailable(f"no node with a heartbeat has pool {pool_id}")
