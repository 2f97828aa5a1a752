"""Drain a node: move every instance off it, and leave it cordoned or in maintenance; and the way back.

The node is DRAINING from the transaction on that begins the drain, so nothing new comes to it.
"""

from collections.abc import Iterable
from dataclasses import replace

from leeward import keys
from leeward.errors import Cancelled, Code, FailedPrecondition, NodeGone
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import MovedAway, Node, NodeDuty
from leeward_controller.domain.node_operation import BringBackArguments, DrainNodeArguments, Move, MovePhase
from leeward_controller.domain.node_transitions import with_duty
from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.moving import Limits, Mover
from leeward_controller.operations.step import Advance, Definition, Step
from leeward_controller.records import ALLOCATIONS, INSTANCES

_LONGEST_S = 7 * 24 * 3600.0


def _arguments(context: StepContext) -> DrainNodeArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, DrainNodeArguments)
    return arguments


async def move_away(context: StepContext) -> Advance:
    """Move away all that is on the node, and all that was on its way to it.

    Raises Cancelled, NodeGone (the node died: its instances are evacuated as those of any other), FailedPrecondition
    (reason NOT_DRAINED, with one violation an instance).
    """
    node_id, arguments = context.node.node, _arguments(context)
    mover = Mover(
        context,
        moves=context.operation.work.moves,
        is_there=lambda instance: instance.node != node_id,
        limits=Limits(arguments.parallelism, arguments.retries, arguments.on_failure),
        found=lambda: _on_node(context),
    )
    while True:
        if context.is_fenced(node_id):
            raise NodeGone(f"nodes/{node_id} died while it was drained; its instances are restarted elsewhere")
        if await mover.advance() and await _is_over(context, mover):
            break
        await mover.rest()
    _raise_if_left(context, mover, "NOT_DRAINED", f"not everything could be moved off nodes/{node_id}")
    staying = mover.count(MovePhase.STAYS)
    in_maintenance = arguments.enter_maintenance and not staying
    reason = arguments.reason or "drained"
    if staying:
        reason += f"; {staying} instances stay on it, as their labels ask"
    duty = NodeDuty.MAINTENANCE if in_maintenance else NodeDuty.CORDONED
    return Advance(
        work=replace(context.operation.work, moves=mover.moves, note=reason if staying else ""),
        node=lambda node: with_duty(remembering(node, mover.moves), duty, reason=reason),
    )


def _on_node(context: StepContext) -> Iterable[Move]:
    for stored in context.view.instances_on(context.node.node):
        yield Move(stored.value.name, stored.value.uid)


async def _is_over(context: StepContext, mover: Mover) -> bool:
    """Whether it was cancelled or has failed, or the store too says that nothing is there, or comes, but what stays.

    A place that is kept for a resize until it is confirmed is no guest, and may be kept for days.
    """
    if context.cancelled.is_set() or mover.violations():
        return True
    node_id, records = context.node.node, context.surroundings.records
    staying = {move.instance_uid for move in mover.moves if move.phase is MovePhase.STAYS}
    allocation = await records.get(ALLOCATIONS, keys.allocation(node_id))
    held = {reservation.instance_uid for reservation in allocation.value.reservations} if allocation else set()
    instances = [stored.value for stored in (await records.list(INSTANCES)).items]
    recorded = {instance.uid for instance in instances if instance.node == node_id}
    kept = {instance.uid for instance in instances if _keeps_a_place(instance, node_id)}
    return held | recorded <= staying | kept


def _keeps_a_place(instance: Instance, node_id: str) -> bool:
    """Whether it is elsewhere, and may come back by the revert of a resize, which nobody has asked for yet."""
    is_elsewhere = instance.node != node_id and node_id in instance.holding_nodes
    return is_elsewhere and not instance.current_operation


def _raise_if_left(context: StepContext, mover: Mover, reason: str, message: str) -> None:
    if context.cancelled.is_set():
        moved = mover.count(MovePhase.MOVED)
        left = len(mover.moves) - moved
        raise Cancelled(f"cancelled on request: {moved} had been moved, {left} are where they were")
    violations = mover.violations()
    if violations:
        told = "; ".join(f"{each.subject}: {each.description}" for each in violations[:8])
        more = f"; and {len(violations) - 8} more" if len(violations) > 8 else ""
        name = context.node.name
        raise FailedPrecondition(f"{message}: {told}{more}", reason=reason, violations=violations, resource=name)


async def stay_cordoned(context: StepContext) -> Advance:
    """Undo: the node is what it was when the drain was cancelled, and stays cordoned when it failed.

    What has moved away stays there, and is remembered for the way back.
    """
    arguments, cause, moves = _arguments(context), context.operation.undo_cause, context.operation.work.moves
    duty, reason = arguments.duty_before, arguments.cordon_reason_before
    if cause is None or cause.code != Code.CANCELLED.value:
        duty, reason = NodeDuty.CORDONED, "it could not be drained"
    elif duty is NodeDuty.MAINTENANCE:
        # It need not be empty any more.
        duty = NodeDuty.CORDONED
    return Advance(node=lambda node: with_duty(remembering(node, moves), duty, reason=reason))


def remembering(node: Node, moves: Iterable[Move]) -> Node:
    """The node with what was moved off it, for the way back."""
    return node.remembering(
        MovedAway(m.instance, m.instance_uid) for m in moves if m.phase is MovePhase.MOVED and m.operation
    )


async def move_back(context: StepContext) -> Advance:
    """Move back to the node what a drain or a failover has taken from it.

    Raises Cancelled, FailedPrecondition as `move_away`.
    """
    node_id, arguments = context.node.node, context.operation.arguments
    assert isinstance(arguments, BringBackArguments)
    mover = Mover(
        context,
        moves=context.operation.work.moves or [Move(each.instance, each.instance_uid) for each in arguments.instances],
        # One that is on no node has been shelved meanwhile, and nothing needs moving.
        is_there=lambda instance: instance.node in ("", node_id),
        limits=Limits(arguments.parallelism, arguments.retries),
        to=node_id,
    )
    while not await mover.advance():
        await mover.rest()
    _raise_if_left(context, mover, "NOT_BROUGHT_BACK", f"not everything could be moved back to nodes/{node_id}")
    return Advance(work=replace(context.operation.work, moves=mover.moves))


async def remember_the_rest(context: StepContext) -> Advance:
    """Undo: what has not come back can still be brought back, by an operator."""
    arguments = context.operation.arguments
    assert isinstance(arguments, BringBackArguments)
    back = {move.instance_uid for move in context.operation.work.moves if move.phase is MovePhase.MOVED}
    away = [replace(each, restarted_on="") for each in arguments.instances if each.instance_uid not in back]
    return Advance(node=lambda node: node.remembering(away))


DRAIN_NODE = Definition(
    type=OperationType.DRAIN_NODE,
    steps=(Step("move", move_away, undo=stay_cordoned, deadline_s=_LONGEST_S, handles_cancel=True),),
)
BRING_BACK = Definition(
    type=OperationType.BRING_BACK,
    steps=(Step("move", move_back, undo=remember_the_rest, deadline_s=_LONGEST_S, handles_cancel=True),),
)
