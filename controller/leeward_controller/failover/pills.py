"""Leaving poison pills for nodes that cannot be reached, through the agents of those that can."""

import structlog

from leeward.clock import Clock, Ids
from leeward.errors import LeewardError
from leeward_controller.ports import Agents
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_MESSENGERS = 3
_RETRY_S = 5.0
_PATIENCE_S = 30.0
"""Agents look into their slots every second, and a guard ends all guests of a node within one more."""


class Pills:
    """The pills of one term of leadership. A new leader leaves new ones: an old answer is never taken for one to them.

    What was left stays in force until the node is back and it is withdrawn, so nothing of this need be kept in the
    store: the node's heartbeat tells of the pill that it holds.
    """

    def __init__(self, *, view: ClusterView, agents: Agents, clock: Clock, ids: Ids) -> None:
        self._view = view
        self._agents = agents
        self._clock = clock
        self._ids = ids
        self._left: dict[str, tuple[str, str]] = {}
        self._not_before_s: dict[str, float] = {}
        self._wanted_since_s: dict[str, float] = {}

    def left(self, node_id: str, boot_id: str) -> str:
        """The pill that was left for this boot of a node; empty when none was."""
        for_boot, pill_id = self._left.get(node_id, ("", ""))
        return pill_id if for_boot == boot_id else ""

    def is_overdue(self, node_id: str) -> bool:
        """Whether the node was to take one a good while ago, whether or not anybody could leave it."""
        if node_id in self._view.leases:
            self._wanted_since_s.pop(node_id, None)
        since_s = self._wanted_since_s.get(node_id)
        return since_s is not None and self._clock.monotonic_s() - since_s >= _PATIENCE_S

    async def leave(self, node_id: str, boot_id: str) -> None:
        """Have it left by the agents of a few nodes that share pools with it; tried again later when none can."""
        self._wanted_since_s.setdefault(node_id, self._clock.monotonic_s())
        if self._clock.monotonic_s() < self._not_before_s.get(node_id, 0.0):
            return
        self._not_before_s[node_id] = self._clock.monotonic_s() + _RETRY_S
        pill_id, messengers = self._ids.new(), self._messengers(node_id)
        if not any([await self._leave_by(messenger, node_id, boot_id, pill_id) for messenger in messengers]):
            return
        log.warning("failover.pill_left", node=node_id, pill=pill_id, by=messengers)
        self._left[node_id] = (boot_id, pill_id)

    async def withdraw(self, node_id: str, pill_id: str) -> None:
        """Let a node that is back run guests again. Raises what its agent raises."""
        self._left.pop(node_id, None)
        self._not_before_s.pop(node_id, None)
        lease = self._view.leases.get(node_id)
        if lease is None:
            return
        agent = self._agents.at(node=node_id, address=lease.report.address)
        await agent.withdraw_pill(pill_id=pill_id)
        log.info("failover.pill_withdrawn", node=node_id, pill=pill_id)

    def _messengers(self, node_id: str) -> list[str]:
        stored = next((each for each in self._view.nodes.values() if each.value.node == node_id), None)
        pools = {pool.pool_id for pool in stored.value.report.pools} if stored is not None else set[str]()
        able = (
            other
            for other, lease in sorted(self._view.leases.items())
            if other != node_id and any(pool.healthy and pool.pool_id in pools for pool in lease.report.pools)
        )
        return list(able)[:_MESSENGERS]

    async def _leave_by(self, messenger: str, node_id: str, boot_id: str, pill_id: str) -> bool:
        lease = self._view.leases.get(messenger)
        if lease is None:
            return False
        agent = self._agents.at(node=messenger, address=lease.report.address)
        try:
            await agent.leave_pill(node=node_id, boot_id=boot_id, pill_id=pill_id)
        except LeewardError as error:
            log.info("failover.pill_not_left", node=node_id, by=messenger, why=error.message)
            return False
        return True
