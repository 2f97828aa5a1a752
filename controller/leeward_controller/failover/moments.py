"""When what happened, on this process's monotonic clock, noted in the moment that the view tells of it."""

from leeward import keys
from leeward.clock import Clock
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import Operation, OperationType
from leeward_controller.failover import accounts
from leeward_controller.view import ClusterView

_OF_INTEREST = frozenset({OperationType.EVACUATE, OperationType.DRILL_NODE})


class Moments:
    """What the seconds in failovers' records are taken from.

    `lost` tells since when the nodes' leases are lost that were lost while this looked on; `seen` has other moments by
    their marks.
    """

    def __init__(self, *, view: ClusterView, clock: Clock) -> None:
        self.lost: dict[str, float] = {}
        self.seen: dict[str, float] = {}
        self._view = view
        self._clock = clock
        self._drills: set[str] = set()

    def forget(self) -> None:
        """Drop what nobody needs once nothing goes on."""
        self.seen.clear()
        self._drills.clear()

    def notice(self, key: str, *, is_busy: bool) -> bool:
        """Take in that a record has changed; whether a failover's record may have to. `is_busy` when one goes on."""
        now_s = self._clock.monotonic_s()
        if key.startswith(keys.LEASES):
            return self._notice_lease(key.removeprefix(keys.LEASES), now_s) or is_busy
        if key.startswith(keys.FENCES):
            if key in self._view.fences:
                self.seen.setdefault(key, now_s)
            return True
        if key.startswith(keys.NODES):
            stored = self._view.nodes.get(key)
            if stored is not None and stored.value.condition is NodeCondition.FENCING:
                self.seen.setdefault(accounts.detected(stored.value.node), now_s)
            return is_busy
        if key.startswith(keys.OPERATIONS):
            return self._notice_operation(key, now_s)
        return is_busy and key.startswith(keys.INSTANCES)

    def _notice_lease(self, node_id: str, now_s: float) -> bool:
        """Whether it is lost."""
        if node_id in self._view.leases:
            self.lost.pop(node_id, None)
            self.seen.pop(accounts.detected(node_id), None)
            return False
        self.lost.setdefault(node_id, now_s)
        return True

    def _notice_operation(self, key: str, now_s: float) -> bool:
        """Whether it restarts an instance of a lost node, or is a drill or a part of one."""
        stored = self._view.operations.get(key)
        if stored is None or not self._is_of_interest(stored.value):
            return False
        if not stored.value.phase.ended:
            self.seen.setdefault(accounts.begun(key), now_s)
        elif accounts.begun(key) in self.seen:
            self.seen.setdefault(accounts.ended(key), now_s)
        return True

    def _is_of_interest(self, operation: Operation) -> bool:
        if operation.type is OperationType.DRILL_NODE:
            self._drills.add(operation.name)
        return operation.type in _OF_INTEREST or operation.parent in self._drills
