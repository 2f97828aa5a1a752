"""The record of a drill that has ended, from its operation and the parts of it. Pure."""

from collections.abc import Sequence

from leeward import keys
from leeward_controller.domain.failover import (
    FailoverGuest,
    FailoverKind,
    FailoverRecord,
    FailoverState,
    GuestOutcome,
)
from leeward_controller.domain.node_operation import DrillMove, DrillNodeArguments
from leeward_controller.domain.operation import Operation, OperationPhase
from leeward_controller.failover.accounts import MOST_ERROR, Stopwatch, begun, counted, ended
from leeward_controller.operations.drill import children_back, children_out


def drill_record(
    drill: Operation, operations: Sequence[Operation], watch: Stopwatch, *, failover_id: str, controller: str
) -> FailoverRecord:
    """What a drill has shown. `operations` are all there are, `watch` began with the drill."""
    arguments = drill.arguments
    assert isinstance(arguments, DrillNodeArguments)
    assert drill.end_time is not None
    out = {each.instance_uid: each for each in children_out(drill, operations)}
    back = {each.instance_uid: each for each in children_back(drill, operations)}
    guests = [
        _guest(planned, out.get(planned.instance_uid), back.get(planned.instance_uid), watch)
        for planned in sorted(arguments.placements, key=lambda each: each.instance)
    ]
    is_whole = all(each.outcome is GuestOutcome.BROUGHT_BACK for each in guests)
    record = FailoverRecord(
        id=failover_id,
        node=drill.node,
        boot_id=arguments.boot_id,
        state=FailoverState.RECOVERED if is_whole else FailoverState.INCOMPLETE,
        begin_time=drill.create_time,
        controller=controller,
        measured=watch.begin_s is not None,
        to_restart=len(guests),
        left_alone=arguments.left_alone,
        end_time=drill.end_time,
        total_s=watch.at(ended(keys.operation(drill.id)), drill.end_time),
        kind=FailoverKind.DRILL,
        operation=drill.name,
    )
    return counted(record, guests)


def _guest(planned: DrillMove, out: Operation | None, back: Operation | None, watch: Stopwatch) -> FailoverGuest:
    if out is None:
        outcome = GuestOutcome.STAYED if planned.node else GuestOutcome.NO_PLACE
        return FailoverGuest(planned.instance, planned.instance_uid, outcome, error=planned.reason[:MOST_ERROR])
    failed = next((each for each in (out, back) if each is not None and each.error is not None), None)
    return FailoverGuest(
        instance=planned.instance,
        instance_uid=planned.instance_uid,
        outcome=_outcome(out, back),
        to_node=planned.node,
        operation=out.name,
        tries=1,
        begin_time=out.create_time,
        end_time=out.end_time,
        begun_s=watch.at(begun(keys.operation(out.id)), out.create_time),
        ended_s=watch.at(ended(keys.operation(out.id)), out.end_time) if out.end_time else None,
        restart_s=round(sum(step.seconds for step in out.history), 3),
        error=failed.error.message[:MOST_ERROR] if failed is not None and failed.error is not None else "",
    )


def _outcome(out: Operation, back: Operation | None) -> GuestOutcome:
    if out.phase is OperationPhase.CANCELLED:
        return GuestOutcome.CANCELLED
    if out.phase is not OperationPhase.SUCCEEDED:
        return GuestOutcome.FAILED
    is_back = back is not None and back.phase is OperationPhase.SUCCEEDED
    return GuestOutcome.BROUGHT_BACK if is_back else GuestOutcome.RESTARTED
