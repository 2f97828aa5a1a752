"""Evacuate: with a fence proof for its node, give an instance a new place and start it there from the shared disk."""

from dataclasses import replace

from leeward import keys
from leeward.errors import FailedPrecondition, Violation
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import EvacuateArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.create import remove_guest
from leeward_controller.operations.placing import (
    choose_node,
    release_target,
    reservation_of,
)
from leeward_controller.operations.predecessors import wait_for_predecessor
from leeward_controller.operations.step import Advance, Definition, Step
from leeward_controller.records import FENCES

_RUNS = frozenset({InstanceState.ACTIVE})


def _arguments(context: StepContext) -> EvacuateArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, EvacuateArguments)
    return arguments


async def place(context: StepContext) -> Advance:
    """Require the proof, choose a node, reserve on it, and raise the run epoch.

    The epoch rises in the record before anything happens on a host, so no second attempt can reuse it. An instance
    that has meanwhile arrived elsewhere (a migration that was under way) needs nothing.
    """
    arguments = _arguments(context)
    if context.instance.node != arguments.fenced_node:
        return Advance(skip_rest=True)
    await _require_proof(context)
    node = choose_node(context, named=arguments.node, leaving=arguments.fenced_node)
    epoch = context.instance.run_epoch + 1
    return Advance(
        work=replace(context.operation.work, source_node=arguments.fenced_node, target_node=node, run_epoch=epoch),
        instance=lambda instance: replace(instance, run_epoch=epoch),
        reserve_on=node,
        reservation=reservation_of(context.instance),
    )


async def _require_proof(context: StepContext) -> None:
    arguments = _arguments(context)
    key = keys.fence(arguments.fenced_node, arguments.fenced_boot_id)
    if await context.surroundings.records.get(FENCES, key) is None:
        node = f"nodes/{arguments.fenced_node}"
        why = "there is no fence proof for it, so its guests may still run"
        raise FailedPrecondition(f"{node}: {why}", violations=[Violation("FENCE_PROOF", node, why)], resource=node)


async def restart(context: StepContext) -> Advance:
    """Take the right to run, then start the guest if it is meant to run; the record's node is written last."""
    work = context.operation.work
    agent = context.agent_to_start(work.target_node)
    spec = context.instance.guest_spec(run_epoch=work.run_epoch)
    await agent.claim_run_epoch(context.caller, spec=spec)
    await _clear_returned_source(context)
    if context.instance.state in _RUNS:
        await agent.start_guest(context.caller, spec=spec)
    now = context.surroundings.clock.now()
    return Advance(
        instance=lambda instance: replace(
            instance,
            node=work.target_node,
            last_boot_time=now if instance.state in _RUNS else instance.last_boot_time,
        ),
        release_from=(work.source_node,),
    )


async def leave_target(context: StepContext) -> Advance:
    """Remove what may have been started, and let the epoch rise past the one that the target may have claimed.

    The instance stays recorded on its node, which may come back and start it there: that takes an epoch of its own.
    """
    await remove_guest(context)
    epoch = context.operation.work.run_epoch + 1
    return Advance(instance=lambda instance: replace(instance, run_epoch=max(instance.run_epoch, epoch)))


async def _clear_returned_source(context: StepContext) -> None:
    """Should the fenced boot have come back, see that it holds nothing of the guest.

    The proof told that nothing ran there when it was made. Since the right to run has just been moved, nothing can be
    started there any more.
    """
    arguments = _arguments(context)
    node_id = arguments.fenced_node
    if await context.surroundings.records.store.get(keys.lease(node_id)) is not None:
        await context.agent(node_id).remove_guest(context.caller, uid=context.instance.uid)


EVACUATE = Definition(
    type=OperationType.EVACUATE,
    steps=(
        Step("wait_for_predecessor", wait_for_predecessor, deadline_s=120.0),
        Step("place", place, undo=release_target, deadline_s=30.0),
        Step("restart", restart, undo=leave_target, deadline_s=60.0),
    ),
    attempts=3,
)
