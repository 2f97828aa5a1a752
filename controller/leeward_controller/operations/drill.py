"""Drill: move each running guest of a node live to where failover would restart it now, and back.

Nothing is lost by it. The node takes nothing new while its guests leave it. Each is tried once, at the node that was
planned for it, since what does not go there is what a rehearsal is for. Whatever has been moved comes back.
"""

from collections.abc import Iterable
from dataclasses import replace

from leeward.errors import Cancelled, FailedPrecondition, NodeGone, Violation
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node, NodeDuty
from leeward_controller.domain.node_operation import DRILL_REASON, DrillNodeArguments, Move, MovePhase
from leeward_controller.domain.node_transitions import with_duty
from leeward_controller.domain.operation import LiveMigrateArguments, Operation, OperationPhase, OperationType
from leeward_controller.domain.transitions import TABLE
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.drain import remembering
from leeward_controller.operations.moving import Limits, Means, Mover
from leeward_controller.operations.step import Advance, Definition, Step

_BACK = "back/"
_TRIES_BACK = 2
_LONGEST_S = 24 * 3600.0


def _arguments(context: StepContext) -> DrillNodeArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, DrillNodeArguments)
    return arguments


def _live(instance: Instance, *, to: str) -> Means | str:
    """A drill moves nothing but live: it must not cost a guest a moment."""
    if instance.state not in TABLE[OperationType.LIVE_MIGRATE].allowed_from:
        return f"it is {instance.state}, and cannot be moved live"
    return Means(OperationType.LIVE_MIGRATE, LiveMigrateArguments(node=to))


def _check_not_gone(context: StepContext) -> None:
    if context.is_fenced(context.node.node):
        raise NodeGone(f"{context.node.name} died during its drill; its instances are restarted elsewhere")


async def move_out(context: StepContext) -> Advance:
    """Move each guest to its planned node, as far as that can be done. Raises Cancelled, NodeGone."""
    node_id, arguments = context.node.node, _arguments(context)
    to = {each.instance_uid: each.node for each in arguments.placements}
    mover = Mover(
        context,
        moves=context.operation.work.moves
        or [Move(each.instance, each.instance_uid) for each in arguments.placements if each.node],
        is_there=lambda instance: instance.node != node_id,
        limits=Limits(arguments.parallelism, retries=0),
        means=lambda instance: _live(instance, to=to[instance.uid]),
    )
    await _advance(context, mover)
    return Advance(
        work=replace(context.operation.work, moves=()),
        node=lambda node: _released(remembering(node, mover.moves)),
    )


async def _advance(context: StepContext, mover: Mover) -> None:
    """Until all is done that can be. Raises Cancelled, NodeGone."""
    while True:
        _check_not_gone(context)
        if await mover.advance():
            break
        await mover.rest()
    if context.cancelled.is_set():
        raise Cancelled("cancelled on request; what is elsewhere comes back with `uncordon --bring-back`")


def _released(node: Node) -> Node:
    """The node in service again, unless somebody has wanted something else of it meanwhile, as by cordoning it."""
    if node.duty is not NodeDuty.DRAINING:
        return node
    duty = NodeDuty.IN_SERVICE if node.cordon_reason == DRILL_REASON else NodeDuty.CORDONED
    return with_duty(node, duty, reason=node.cordon_reason)


async def release(context: StepContext) -> Advance:
    """Undo: the node is in service, and remembers what has left it."""
    moves = context.operation.work.moves
    return Advance(node=lambda node: _released(remembering(node, moves)))


async def move_in(context: StepContext) -> Advance:
    """Move back what has left it. Raises Cancelled, NodeGone, FailedPrecondition (reason DRILL_FAILED, with one
    violation for each guest that could not be moved as planned, or is not back).
    """
    node_id, arguments = context.node.node, _arguments(context)
    planned = {each.instance_uid for each in arguments.placements}
    away = [each for each in context.node.moved_away if each.instance_uid in planned]
    mover = Mover(
        context,
        moves=context.operation.work.moves or [Move(each.instance, each.instance_uid) for each in away],
        # One that is on no node has been shelved meanwhile.
        is_there=lambda instance: instance.node in ("", node_id),
        limits=Limits(arguments.parallelism, _TRIES_BACK),
        means=lambda instance: _live(instance, to=node_id),
        part=_BACK,
    )
    await _advance(context, mover)
    violations = [*_not_moved(context), *mover.violations()]
    if violations:
        told = "; ".join(f"{each.subject}: {each.description}" for each in violations[:8])
        raise FailedPrecondition(
            f"not every guest of {context.node.name} could be moved as failover would: {told}",
            reason="DRILL_FAILED",
            violations=violations,
            resource=context.node.name,
        )
    return Advance(
        work=replace(context.operation.work, moves=mover.moves), node=lambda node: _forgetting(node, mover.moves)
    )


def _not_moved(context: StepContext) -> Iterable[Violation]:
    """What found no place, or could not be moved to it."""
    last = {each.instance_uid: each for each in children_out(context.operation, _operations(context))}
    for planned in _arguments(context).placements:
        child = last.get(planned.instance_uid)
        if not planned.node:
            yield Violation("INSTANCE", planned.instance, planned.reason)
        elif child is not None and child.phase is not OperationPhase.SUCCEEDED:
            why = child.error.message if child.error else str(child.phase)
            yield Violation("INSTANCE", planned.instance, f"it could not be moved to nodes/{planned.node}: {why}")


def _operations(context: StepContext) -> list[Operation]:
    return [stored.value for stored in context.view.operations.values()]


def children_out(drill: Operation, operations: Iterable[Operation]) -> list[Operation]:
    """Those of its parts that moved a guest away, oldest first."""
    return [each for each in _children(drill, operations) if not _is_back(drill, each)]


def children_back(drill: Operation, operations: Iterable[Operation]) -> list[Operation]:
    """Those of its parts that moved a guest back, oldest first."""
    return [each for each in _children(drill, operations) if _is_back(drill, each)]


def _children(drill: Operation, operations: Iterable[Operation]) -> list[Operation]:
    parts = [each for each in operations if each.parent == drill.name]
    return sorted(parts, key=lambda each: (each.create_time, each.id))


def _is_back(drill: Operation, child: Operation) -> bool:
    return isinstance(child.arguments, LiveMigrateArguments) and child.arguments.node == drill.node


def _forgetting(node: Node, moves: Iterable[Move]) -> Node:
    """The node without what is back."""
    back = {move.instance_uid for move in moves if move.phase is MovePhase.MOVED}
    return replace(node, moved_away=tuple(each for each in node.moved_away if each.instance_uid not in back))


async def remember_the_rest(context: StepContext) -> Advance:
    """Undo: what is not back can still be brought back."""
    moves = context.operation.work.moves
    return Advance(work=replace(context.operation.work, moves=()), node=lambda node: _forgetting(node, moves))


DRILL_NODE = Definition(
    type=OperationType.DRILL_NODE,
    steps=(
        Step("move_out", move_out, undo=release, deadline_s=_LONGEST_S, handles_cancel=True),
        Step("move_in", move_in, undo=remember_the_rest, deadline_s=_LONGEST_S, handles_cancel=True),
    ),
)
