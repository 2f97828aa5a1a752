"""Gives nodes back, once they are well again, what was restarted elsewhere when they died; where policy says so."""

from dataclasses import dataclass, replace

import structlog

from leeward import keys
from leeward.errors import Conflict, LeewardError, OperationRunning, Unavailable
from leeward_controller.domain.node import MovedAway, Node, NodeCondition, NodeDuty
from leeward_controller.domain.node_operation import BringBackArguments
from leeward_controller.domain.operation import OperationType
from leeward_controller.housekeeping.duty import NEVER_S
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import Stored

log = structlog.get_logger()

_REQUESTER = Requester(principal="leeward:give-back", admin=True)
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class GiveBackPolicy:
    """Whether instances return to a node that has died and come back, and for how long it has to be well before."""

    enabled: bool = False
    after_s: float = 300.0


class GiveBack:
    """Begins to bring back what failover took from a node, when that has been in service for long enough.

    What somebody has moved on since stays where it is. What cannot be brought back is left to operators.
    """

    name = "give-back"

    def __init__(
        self, *, surroundings: Surroundings, submitter: Submitter, leader_epoch: int, policy: GiveBackPolicy
    ) -> None:
        self._view = surroundings.view
        self._clock = surroundings.clock
        self._submitter = submitter
        self._leader_epoch = leader_epoch
        self._policy = policy
        self._well_since_s: dict[str, float] = {}

    def concerns(self, key: str) -> bool:
        return self._policy.enabled and key.startswith((keys.NODES, keys.LEASES))

    async def work(self) -> float:
        if not self._policy.enabled:
            return NEVER_S
        now_s = self._clock.monotonic_s()
        waiting = [stored for stored in self._view.nodes.values() if self._is_well(stored.value)]
        self._well_since_s = {stored.value.node: self._well_since_s.get(stored.value.node, now_s) for stored in waiting}
        for stored in waiting:
            is_due = now_s - self._well_since_s[stored.value.node] >= self._policy.after_s
            if is_due and (away := self._returning(stored.value)):
                await self._begin(stored, away)
        return _LOOK_S if any(self._returning(stored.value) for stored in waiting) else NEVER_S

    def _is_well(self, node: Node) -> bool:
        in_service = node.condition is NodeCondition.READY and node.duty is NodeDuty.IN_SERVICE
        return in_service and node.node in self._view.leases and not node.current_operation

    def _returning(self, node: Node) -> tuple[MovedAway, ...]:
        """What failover took from it, and nobody has moved since."""
        return tuple(each for each in node.moved_away if each.restarted_on and self._is_where_it_was_put(each))

    def _is_where_it_was_put(self, away: MovedAway) -> bool:
        stored = self._view.instances.get(keys.instance(away.instance))
        return stored is not None and stored.value.uid == away.instance_uid and stored.value.node == away.restarted_on

    async def _begin(self, stored: Stored[Node], away: tuple[MovedAway, ...]) -> None:
        def forget(node: Node) -> Node:
            return replace(node, moved_away=tuple(each for each in node.moved_away if not each.restarted_on))

        try:
            await self._submitter.submit_on_node(
                stored,
                OperationType.BRING_BACK,
                BringBackArguments(away),
                _REQUESTER,
                change=forget,
                leader_epoch=self._leader_epoch,
            )
            log.info("give_back.begun", node=stored.value.node, instances=len(away))
        except (Conflict, OperationRunning) as error:
            log.info("give_back.waits", node=stored.value.node, why=error.message)
        except Unavailable:
            raise
        except LeewardError as error:
            log.warning("give_back.not_begun", node=stored.value.node, why=error.message)
