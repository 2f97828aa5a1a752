"""A node as it is shown to clients: with its heartbeat, what is reserved on it, and the proof about it."""

from dataclasses import dataclass

from leeward import keys
from leeward.agent.types import NodeReport
from leeward.errors import NotFound
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation
from leeward_controller.ports import Codec
from leeward_controller.records import ALLOCATIONS, FENCES, NODES, Records, Stored
from leeward_controller.view import ClusterView


@dataclass(frozen=True, slots=True)
class ShownNode:
    """A node with what else is known of it. `lease` is its heartbeat's report, None when that is not there."""

    stored: Stored[Node]
    lease: NodeReport | None
    allocation: NodeAllocation
    proof: FenceProof | None = None


class NodeReader:
    """Gathers what belongs to a node."""

    def __init__(self, *, records: Records, codec: Codec, view: ClusterView) -> None:
        self._records = records
        self._codec = codec
        self._view = view

    async def read(self, node_id: str) -> Stored[Node]:
        """A node's record as it is now. Raises NotFound."""
        stored = await self._records.get(NODES, keys.node(node_id))
        if stored is None:
            raise NotFound.named(f"nodes/{node_id}")
        return stored

    async def gathered(self, stored: Stored[Node]) -> ShownNode:
        """A node with all that belongs to it, as it is now."""
        node = stored.value
        lease = await self._records.store.get(keys.lease(node.node))
        report = self._codec.decode_report(lease.value) if lease else None
        allocation = await self._records.get(ALLOCATIONS, keys.allocation(node.node))
        held = allocation.value if allocation else NodeAllocation(node.node)
        return ShownNode(stored, report, held, await self.proof(node.node, node.report.boot_id))

    async def proof(self, node_id: str, boot_id: str) -> FenceProof | None:
        """The proof that a boot of a node is over, if there is one."""
        found = await self._records.get(FENCES, keys.fence(node_id, boot_id))
        return None if found is None else found.value

    def at_hand(self, stored: Stored[Node]) -> ShownNode:
        """A node with what this replica's view says of it."""
        node_id = stored.value.node
        lease = self._view.leases.get(node_id)
        allocation = self._view.allocations.get(keys.allocation(node_id))
        held = allocation.value if allocation else NodeAllocation(node_id)
        proof = self._view.fences.get(keys.fence(node_id, stored.value.report.boot_id))
        return ShownNode(stored, lease.report if lease else None, held, proof.value if proof else None)
