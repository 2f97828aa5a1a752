"""Migrate, cold: stop the guest here, move its disks where they are not shared, start it there."""

from collections.abc import Callable
from dataclasses import replace

from leeward.agent.types import GuestState
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import MigrateArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import delete_disks_in, drop_pulled_disks, pull_disks, spec_at_target
from leeward_controller.operations.placing import choose_place, release_target, reservation_of
from leeward_controller.operations.running import bring_up, forget_on, halt, leave_target, start_again
from leeward_controller.operations.step import Advance, Definition, Step

LONGEST_GRACE_S = 3600.0
LONGEST_COPY_S = 24 * 3600.0


def _arguments(context: StepContext) -> MigrateArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, MigrateArguments)
    return arguments


async def place(context: StepContext) -> Advance:
    """Choose the target and reserve on it."""
    instance = context.instance
    chosen = choose_place(context, named=_arguments(context).node, leaving=instance.node)
    work = replace(
        context.operation.work,
        source_node=instance.node,
        target_node=chosen.node,
        target_pool_id=chosen.pool_id,
        source_pool_id=instance.pool_id,
        run_epoch=instance.run_epoch + 1,
    )
    return Advance(work=work, reserve_on=chosen.node, reservation=reservation_of(instance))


async def stop(context: StepContext) -> Advance:
    """Stop the guest where it is."""
    await halt(context, grace_period_s=_arguments(context).grace_period_s)
    return Advance()


async def start_there(context: StepContext) -> Advance:
    """Take the right to run, and start the guest if it is meant to run; its place is recorded with that."""
    work, wanted = context.operation.work, context.instance.wanted_guest
    await bring_up(context, node=work.target_node, spec=spec_at_target(context), wanted=wanted)
    return Advance(instance=arrived(context), release_from=(work.source_node,))


def arrived(context: StepContext) -> Callable[[Instance], Instance]:
    """The instance at its new place."""
    work, now = context.operation.work, context.surroundings.clock.now()
    started = context.instance.wanted_guest is GuestState.RUNNING
    return lambda instance: replace(
        instance,
        node=work.target_node,
        pool_id=work.target_pool_id,
        run_epoch=work.run_epoch,
        last_boot_time=now if started else instance.last_boot_time,
    )


async def clear_source(context: StepContext) -> Advance:
    """Nothing of the guest is left where it was."""
    work = context.operation.work
    await forget_on(context, work.source_node)
    await delete_disks_in(context, node=work.source_node, pool_id=work.source_pool_id)
    return Advance()


MIGRATE = Definition(
    type=OperationType.MIGRATE,
    steps=(
        Step("place", place, undo=release_target, deadline_s=30.0),
        Step("stop", stop, undo=start_again, deadline_s=LONGEST_GRACE_S + 60.0),
        Step("move_disks", pull_disks, undo=drop_pulled_disks, deadline_s=LONGEST_COPY_S),
        Step("start_there", start_there, undo=leave_target, deadline_s=120.0, commits=True),
        Step("clear_source", clear_source),
    ),
    attempts=3,
)
