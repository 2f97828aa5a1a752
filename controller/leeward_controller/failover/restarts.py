"""Which of the instances that wait on dead nodes are begun now, and where: in order of priority, spread over the nodes.

It lives for one term of leadership. A new leader finds what is under way in the records, and tries anew what failed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import structlog

from leeward import keys
from leeward.clock import Clock
from leeward_controller.domain.instance import Instance, InstanceState, RestartPriority
from leeward_controller.domain.operation import EvacuateArguments, Operation, OperationPhase, OperationType
from leeward_controller.failover.model import Timing
from leeward_controller.failover.order import Member, RestartPolicy, Stage, Tiers, open_tiers
from leeward_controller.failover.spread import Spread
from leeward_controller.records import Stored
from leeward_controller.scheduler.candidates import candidates
from leeward_controller.scheduler.model import PlacementPolicy
from leeward_controller.scheduler.requests import request_for
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_SELF_HEALING = frozenset({OperationType.CREATE, OperationType.EVACUATE, OperationType.DELETE})
_NEVER_RAN = frozenset({InstanceState.BUILDING, InstanceState.DELETED})


@dataclass(frozen=True, slots=True)
class Start:
    """An instance to be evacuated now; `node` is where there is room for it, empty when nowhere."""

    stored: Stored[Instance]
    node: str


@dataclass(frozen=True, slots=True)
class _Begun:
    operation: str
    node: str


class Restarts:
    """Chooses, and remembers what was begun."""

    def __init__(
        self, *, view: ClusterView, clock: Clock, timing: Timing, policy: RestartPolicy, placement: PlacementPolicy
    ) -> None:
        self._view = view
        self._clock = clock
        self._timing = timing
        self._policy = policy
        self._placement = placement
        self._not_before_s: dict[str, float] = {}
        self._begun: dict[str, _Begun] = {}
        self._settled: set[str] = set()
        self._knows_earlier_terms = False
        self._tiers = Tiers({})

    def needs(self, instance: Instance) -> bool:
        """Whether an instance of a fenced node is still to be taken care of, and may be tried now."""
        due = self._clock.monotonic_s() >= self._not_before_s.get(instance.uid, 0.0)
        return due and self._concerns(instance) and not self._is_cared_for(instance)

    def choose(self, node: str, names: Iterable[str]) -> list[Start]:
        """Those of a dead node's instances that are to be begun now; each is put off, so that it is not begun twice."""
        members, starting = self._survey()
        self._open(members.values())
        found = [self._view.instances.get(keys.instance(name)) for name in names]
        waiting = [each for each in found if each is not None and self._may_begin(each.value, members)]
        waiting.sort(key=lambda each: (each.value.restart_priority.tier, each.key))
        return self._place(node, waiting, starting) if waiting else []

    def begun(self, uid: str, operation: Operation, node: str) -> None:
        """An evacuation was begun."""
        self._begun[uid] = _Begun(operation.id, node)

    def overtaken(self, uid: str) -> None:
        """Somebody else was faster: look again soon."""
        self._put_off(uid, self._timing.retry_conflict_s)

    def _put_off(self, uid: str, seconds: float) -> None:
        self._not_before_s[uid] = self._clock.monotonic_s() + seconds

    def _concerns(self, instance: Instance) -> bool:
        return instance.restart_on_failure and instance.state not in _NEVER_RAN

    def _is_cared_for(self, instance: Instance) -> bool:
        if not instance.current_operation:
            return False
        operation = self._operation(instance.current_operation.removeprefix("operations/"))
        return operation is None or operation.type in _SELF_HEALING

    def _operation(self, operation_id: str) -> Operation | None:
        stored = self._view.operations.get(keys.operation(operation_id))
        return stored.value if stored is not None else None

    def _survey(self) -> tuple[dict[str, Member], Counter[str]]:
        """Every instance of a fenced node that failover cares for, by uid, and the starts under way by their target.

        One that was restarted and is not ready yet is among them.
        """
        members = {each.uid: Member(each.name, each.restart_priority, Stage.UNDER_WAY) for each in self._awaited()}
        starting: Counter[str] = Counter()
        for instance in self._left_on_dead_nodes():
            stage, target = self._stage(instance)
            members[instance.uid] = Member(instance.name, instance.restart_priority, stage)
            if target:
                starting[target] += 1
        self._settled &= members.keys()
        return members, starting

    def _awaited(self) -> Iterator[Instance]:
        """Those that have left their dead node by an evacuation that has not ended."""
        self._learn_of_earlier_terms()
        for uid, begun in tuple(self._begun.items()):
            operation = self._operation(begun.operation)
            if operation is None:
                continue
            stored = self._view.instances.get(keys.instance(operation.instance))
            if stored is None or stored.value.uid != uid:
                del self._begun[uid]
            elif stored.value.node == operation.work.target_node:
                if operation.phase.ended:
                    del self._begun[uid]
                else:
                    yield stored.value

    def _learn_of_earlier_terms(self) -> None:
        if self._knows_earlier_terms:
            return
        self._knows_earlier_terms = True
        for stored in self._view.unfinished.values():
            operation = stored.value
            if operation.type is OperationType.EVACUATE:
                self._begun.setdefault(operation.instance_uid, _Begun(operation.id, operation.work.target_node))

    def _left_on_dead_nodes(self) -> Iterator[Instance]:
        for stored in self._view.nodes.values():
            node, boot_id = stored.value.node, stored.value.report.boot_id
            if keys.fence(node, boot_id) in self._view.fences:
                yield from (each.value for each in self._view.instances_on(node) if self._concerns(each.value))

    def _stage(self, instance: Instance) -> tuple[Stage, str]:
        """How far it has come, and the node that it is being started on."""
        uid, target = instance.uid, ""
        begun = self._begun.get(uid)
        operation_id = begun.operation if begun else instance.current_operation.removeprefix("operations/")
        operation = self._operation(operation_id) if operation_id else None
        under_way = operation is not None and operation.type is OperationType.EVACUATE and not operation.phase.ended
        if operation is not None and under_way:
            arguments = operation.arguments
            preferred = arguments.preferred_node if isinstance(arguments, EvacuateArguments) else ""
            target = operation.work.target_node or preferred
        elif begun and operation is None:
            under_way, target = True, begun.node  # The view does not tell of it yet.
        elif begun and operation is not None:
            del self._begun[uid]
            if operation.phase is OperationPhase.SUCCEEDED:
                self._settled.discard(uid)  # It has been elsewhere since, and is on a dead node once more.
            else:
                self._settled.add(uid)
        if uid in self._settled:
            return Stage.SETTLED, target
        return (Stage.UNDER_WAY if under_way else Stage.WAITING), target

    def _open(self, members: Iterable[Member]) -> None:
        before, wait_s = self._tiers, self._policy.tier_wait_s
        now_s = self._clock.monotonic_s()
        self._tiers = open_tiers(members, since_s=before.since_s, now_s=now_s, tier_wait_s=wait_s)
        for priority in self._tiers.overdue - before.overdue:
            log.warning("failover.tier_not_awaited", priority=priority, waited_s=wait_s)
        for priority in self._tiers.since_s.keys() - before.since_s.keys():
            if priority is not RestartPriority.MEDIUM or before.since_s:
                log.info("failover.tier_begins", priority=priority)

    def _may_begin(self, instance: Instance, members: dict[str, Member]) -> bool:
        member = members.get(instance.uid)
        return self.needs(instance) and (member is None or self._tiers.may_begin(member))

    def _place(self, leaving: str, waiting: list[Stored[Instance]], starting: Counter[str]) -> list[Start]:
        spread = Spread(
            candidates(self._view),
            policy=self._placement,
            starting=starting,
            limit=self._policy.parallel_starts_per_node,
        )
        excluded = ((leaving, "it is the node being left"),)
        starts: list[Start] = []
        room = self._policy.parallel_starts - starting.total()
        for stored in waiting:
            if len(starts) >= room:
                break
            instance = stored.value
            request = request_for(self._view, instance, excluded=excluded, lost_node=True)
            spot = spread.place(request, instance.name)
            if spot.busy:
                continue
            if not spot.node and instance.uid in self._settled:
                # An operation that fails for want of a place says so once; the next one waits until there is one.
                self._put_off(instance.uid, self._timing.retry_conflict_s)
                continue
            self._put_off(instance.uid, self._timing.retry_evacuation_s)
            starts.append(Start(stored, spot.node))
        return starts
