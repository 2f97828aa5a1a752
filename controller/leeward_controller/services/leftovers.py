"""What a host still has of guests that live elsewhere or are deleted, for whoever is to release it from quarantine."""

from dataclasses import dataclass

from leeward import keys, names
from leeward.errors import AgentUnavailable, NotFound
from leeward_controller.audit.gather import gather
from leeward_controller.audit.leftovers import Leftover, leftovers_on
from leeward_controller.ports import Agents
from leeward_controller.records import NODES, Records
from leeward_controller.view import ClusterView


@dataclass(frozen=True, slots=True)
class LeftoverReport:
    """All leftovers of a node, and whether it is in quarantine, so that none of them is deleted yet."""

    leftovers: tuple[Leftover, ...]
    quarantined: bool


class LeftoverService:
    """Looks at hosts, and changes nothing."""

    def __init__(self, *, records: Records, view: ClusterView, agents: Agents) -> None:
        self._records = records
        self._view = view
        self._agents = agents

    async def list(self, name: str) -> LeftoverReport:
        """The leftovers on a node. Raises InvalidArgument, NotFound, AgentUnavailable (it cannot be asked)."""
        node_id = names.node(name)
        if await self._records.get(NODES, keys.node(node_id)) is None:
            raise NotFound.named(name)
        contents = await gather(self._records, self._view, self._agents, nodes=frozenset({node_id}))
        if node_id not in contents.inventories:
            why = contents.unreached.get(node_id, "it has no heartbeat")
            raise AgentUnavailable(f"{name} could not be asked what it has: {why}")
        elsewhere = {pool.pool_id for node in contents.nodes if node.node != node_id for pool in node.report.pools}
        own = {pool.pool_id for pool in contents.inventories[node_id].pools} - elsewhere
        return LeftoverReport(
            leftovers_on(node_id, contents, own_pools=frozenset(own)), contents.is_quarantined(node_id)
        )
