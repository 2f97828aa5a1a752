"""From what is recorded now to what a failover's record should say. Pure, and the same for leader and reader.

Nothing is written for a single instance: what became of each is told by the operations that restart them, whose
arguments name the lost node and boot.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from leeward import keys
from leeward.errors import NoNodeFits
from leeward_controller.domain.failover import (
    FailoverGuest,
    FailoverProof,
    FailoverRecord,
    FailoverState,
    GuestOutcome,
)
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.node import FenceProof, Node
from leeward_controller.domain.operation import EvacuateArguments, Operation, OperationPhase, StepRecord
from leeward_controller.operations.readiness import AWAIT_READY
from leeward_controller.operations.step import DONE
from leeward_controller.records import Stored
from leeward_controller.view import ClusterView

MOST_GUESTS = 1000
MOST_ERROR = 200
_MOST_EVIDENCE = 2000
_RESTART = "restart"
_NEVER_RAN = frozenset({InstanceState.BUILDING, InstanceState.DELETED})
NOW = "now"
Restarts = dict[tuple[str, str], list[Operation]]
"""Operations by the node and the boot whose instances they restart."""
_RESTARTED = frozenset({GuestOutcome.RESTARTED, GuestOutcome.BROUGHT_BACK})


def begun(operation_key: str) -> str:
    """The mark of an operation's beginning."""
    return f"{operation_key}#begun"


def ended(operation_key: str) -> str:
    """The mark of an operation's end."""
    return f"{operation_key}#ended"


def detected(node_id: str) -> str:
    """The mark of the moment when both heartbeats of a node were found to be lost."""
    return f"{keys.node(node_id)}#detected"


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Seconds since a failover began: `seen` are moments by their marks, on the same clock as `begin_s`.

    Without them (a reader, or a leader who came later) the times of day have to do.
    """

    begin_time: datetime
    begin_s: float | None = None
    seen: Mapping[str, float] = field(default_factory=dict)

    def at(self, mark: str, time: datetime) -> float:
        """When that was, in seconds since the beginning; never negative."""
        seen_s = self.seen.get(mark)
        if self.begin_s is None or seen_s is None:
            return round(max(0.0, (time - self.begin_time).total_seconds()), 3)
        return round(max(0.0, seen_s - self.begin_s), 3)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a lost boot of a node at one moment.

    `lease_boot_id` is the boot of its heartbeat, empty when there is none; `holds_pill` tells that its agent stopped
    its guests on request. `left` are the instances on it that are to be restarted elsewhere, `left_alone` counts the
    others. `operations` are all that have restarted, or are restarting, its instances. `held` tells that nothing is
    restarted by itself now, by the brake or by an operator.
    """

    now: datetime
    node: Node | None
    lease_boot_id: str
    holds_pill: bool
    proof: FenceProof | None
    left: tuple[Instance, ...]
    left_alone: int
    operations: tuple[Operation, ...]
    held: bool

    @property
    def running(self) -> bool:
        """Whether an instance is being restarted now."""
        return any(not operation.phase.ended for operation in self.operations)


def restarts(operations: Iterable[Stored[Operation]]) -> Restarts:
    """The operations that restart instances of lost nodes, by node and boot."""
    found: Restarts = {}
    for stored in operations:
        arguments = stored.value.arguments
        if isinstance(arguments, EvacuateArguments):
            found.setdefault((arguments.fenced_node, arguments.fenced_boot_id), []).append(stored.value)
    return found


def facts_of(view: ClusterView, node_id: str, boot_id: str, *, known: Restarts, now: datetime) -> Facts:
    """What a replica's view knows of a lost boot."""
    stored, lease = view.nodes.get(keys.node(node_id)), view.leases.get(node_id)
    proof = view.fences.get(keys.fence(node_id, boot_id))
    ran = [each.value for each in view.instances_on(node_id) if each.value.state not in _NEVER_RAN]
    left = tuple(instance for instance in ran if instance.restart_on_failure)
    return Facts(
        now=now,
        node=stored.value if stored else None,
        lease_boot_id=lease.report.boot_id if lease else "",
        holds_pill=bool(lease and lease.report.pill_id),
        proof=proof.value if proof else None,
        left=left,
        left_alone=len(ran) - len(left),
        operations=tuple(known.get((node_id, boot_id), ())),
        held=view.disarm is not None or (view.brake is not None and view.brake.value.holds),
    )


def advanced(record: FailoverRecord, facts: Facts, watch: Stopwatch) -> FailoverRecord:
    """The record as it should be now; one that has ended stays as it is."""
    if record.state.ended:
        return record
    if record.proof is None:
        if facts.proof is None:
            return _without_proof(record, facts, watch)
        record = _proved(record, facts, facts.proof, watch)
    record = counted(record, _guests(record, facts, watch))
    if facts.running:
        return replace(record, state=FailoverState.RESTARTING)
    is_replaced = facts.node is None or facts.node.report.boot_id != record.boot_id
    is_cleared = bool(facts.lease_boot_id) and facts.proof is None
    if not facts.left:
        return _ended(record, FailoverState.RECOVERED, facts, watch)
    if is_replaced or is_cleared:
        state = FailoverState.REBOOTED if is_replaced and facts.node is not None else FailoverState.INCOMPLETE
        return _ended(_with_stayed(record), state, facts, watch)
    is_stuck = facts.held or bool(record.failed or record.no_place)
    return replace(record, state=FailoverState.WAITING if is_stuck else FailoverState.RESTARTING)


def _without_proof(record: FailoverRecord, facts: Facts, watch: Stopwatch) -> FailoverRecord:
    if facts.node is None or facts.node.report.boot_id != record.boot_id:
        return _ended(record, FailoverState.INCOMPLETE, facts, watch)
    if facts.lease_boot_id == record.boot_id and not facts.holds_pill:
        return _ended(record, FailoverState.RETURNED, facts, watch)
    return _with_detection(record, watch)


def _with_detection(record: FailoverRecord, watch: Stopwatch) -> FailoverRecord:
    mark = detected(record.node)
    if record.detect_s is not None or mark not in watch.seen:
        return record
    return replace(record, detect_s=watch.at(mark, record.begin_time))


def _proved(record: FailoverRecord, facts: Facts, proof: FenceProof, watch: Stopwatch) -> FailoverRecord:
    seconds = watch.at(keys.fence(record.node, record.boot_id), proof.time)
    record = _with_detection(record, watch)
    detect_s = seconds if record.detect_s is None else min(record.detect_s, seconds)
    return replace(
        record,
        state=FailoverState.RESTARTING,
        detect_s=detect_s,
        proof=FailoverProof(proof.kind, proof.evidence[:_MOST_EVIDENCE], proof.time, seconds),
        to_restart=len({each.uid for each in facts.left} | {each.instance_uid for each in facts.operations}),
        left_alone=facts.left_alone,
    )


def _ended(record: FailoverRecord, state: FailoverState, facts: Facts, watch: Stopwatch) -> FailoverRecord:
    return replace(record, state=state, end_time=facts.now, total_s=watch.at(NOW, facts.now))


def _with_stayed(record: FailoverRecord) -> FailoverRecord:
    """What no operation has restarted stayed where it was."""
    return replace(
        record,
        waiting=0,
        guests=tuple(
            replace(each, outcome=GuestOutcome.STAYED) if each.outcome is GuestOutcome.WAITING else each
            for each in record.guests
        ),
    )


def _guests(record: FailoverRecord, facts: Facts, watch: Stopwatch) -> list[FailoverGuest]:
    """Every instance of the lost node with what became of it, by name.

    What is in the record already stands for operations that were forgotten meanwhile.
    """
    known = {each.instance_uid: each for each in record.guests if each.operation}
    tries: dict[str, list[Operation]] = defaultdict(list)
    for operation in sorted(facts.operations, key=lambda each: (each.create_time, each.id)):
        tries[operation.instance_uid].append(operation)
    guests = {uid: _guest(each, known.get(uid), watch) for uid, each in tries.items()}
    for instance in facts.left:
        waiting = known.get(instance.uid) or FailoverGuest(instance.name, instance.uid, GuestOutcome.WAITING)
        guests.setdefault(instance.uid, waiting)
    return sorted((known | guests).values(), key=lambda each: each.instance)


def _guest(tries: list[Operation], known: FailoverGuest | None, watch: Stopwatch) -> FailoverGuest:
    first, last = tries[0], tries[-1]
    forgotten = 0
    begin_time, begun_s = first.create_time, watch.at(begun(keys.operation(first.id)), first.create_time)
    if known is not None and known.operation and known.operation not in {each.name for each in tries}:
        forgotten = known.tries
    if known is not None and known.begin_time is not None and known.begun_s is not None:
        begin_time, begun_s = known.begin_time, known.begun_s
    ended_s = None
    if last.end_time is not None:
        is_known = known is not None and known.operation == last.name and known.ended_s is not None
        ended_s = known.ended_s if known and is_known else watch.at(ended(keys.operation(last.id)), last.end_time)
    awaited = _awaited(last)
    return FailoverGuest(
        instance=last.instance,
        instance_uid=last.instance_uid,
        outcome=_outcome(last),
        to_node=last.work.target_node,
        operation=last.name,
        tries=forgotten + len(tries),
        begin_time=begin_time,
        end_time=last.end_time,
        begun_s=begun_s,
        ended_s=ended_s,
        restart_s=next((step.seconds for step in reversed(last.history) if step.step == _RESTART), None),
        error=_error(last)[:MOST_ERROR],
        ready_s=awaited.seconds if awaited is not None and awaited.outcome == DONE else None,
    )


def _awaited(operation: Operation) -> StepRecord | None:
    return next((step for step in reversed(operation.history) if step.step == AWAIT_READY), None)


def _error(operation: Operation) -> str:
    """Why an instance was not restarted, or was not ready in time."""
    if operation.error is not None:
        return operation.error.message
    awaited = _awaited(operation)
    return awaited.outcome if awaited is not None and awaited.outcome != DONE else ""


def _outcome(operation: Operation) -> GuestOutcome:
    match operation.phase:
        case OperationPhase.SUCCEEDED:
            return GuestOutcome.RESTARTED if operation.work.target_node else GuestOutcome.ELSEWHERE
        case OperationPhase.CANCELLED:
            return GuestOutcome.CANCELLED
        case OperationPhase.FAILED:
            no_place = operation.error is not None and operation.error.reason == NoNodeFits.reason
            return GuestOutcome.NO_PLACE if no_place else GuestOutcome.FAILED
    return GuestOutcome.RESTARTING


def counted(record: FailoverRecord, guests: list[FailoverGuest]) -> FailoverRecord:
    """The record with its guests, and how many of them came to what."""
    outcomes = [each.outcome for each in guests]
    restarts = [each for each in guests if each.outcome in _RESTARTED]
    times = [each.end_time for each in restarts if each.end_time is not None]
    seconds = [each.ended_s for each in restarts if each.ended_s is not None]
    return replace(
        record,
        restarted=len(restarts),
        failed=outcomes.count(GuestOutcome.FAILED),
        no_place=outcomes.count(GuestOutcome.NO_PLACE),
        waiting=outcomes.count(GuestOutcome.WAITING),
        first_restart_time=min(times, default=None),
        last_restart_time=max(times, default=None),
        first_restart_s=min(seconds, default=None),
        last_restart_s=max(seconds, default=None),
        guests=tuple(guests[:MOST_GUESTS]),
        guests_left_out=len(guests) - len(guests[:MOST_GUESTS]),
    )
