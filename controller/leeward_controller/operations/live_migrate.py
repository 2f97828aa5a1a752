"""Live migrate: reserve on the target, let the source's agent move the guest, then move the right to run.

Where the guest runs is always asked from the two hosts. The record changes last, so whoever takes over in the middle
finds out by asking, and either goes forward (the guest has arrived) or back (it has not left).
"""

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import replace

from leeward.agent.types import (
    GuestState,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
)
from leeward.errors import (
    AgentIndefinite,
    AgentUnavailable,
    Cancelled,
    Conflict,
    FailedPrecondition,
    HypervisorError,
    NodeGone,
)
from leeward_controller.domain.operation import LiveMigrateArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import delete_disks_in, drop_pulled_disks, moves_disks, spec_at_target
from leeward_controller.operations.images import ensure_image
from leeward_controller.operations.placing import choose_place, release_target, reservation_of
from leeward_controller.operations.step import Advance, Definition, Step

_IN_MEMORY = frozenset({GuestState.RUNNING, GuestState.PAUSED})


def _arguments(context: StepContext) -> LiveMigrateArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, LiveMigrateArguments)
    return arguments


async def place(context: StepContext) -> Advance:
    """Choose the target and reserve on it."""
    instance = context.instance
    chosen = choose_place(context, named=_arguments(context).node, leaving=instance.node, for_live=True)
    work = replace(
        context.operation.work,
        source_node=instance.node,
        target_node=chosen.node,
        target_pool_id=chosen.pool_id,
        source_pool_id=instance.pool_id,
        run_epoch=instance.run_epoch + 1,
    )
    return Advance(work=work, reserve_on=chosen.node, reservation=reservation_of(instance))


async def prepare_disks(context: StepContext) -> Advance:
    """Where the two nodes share no pool: have the image there, and disks for the guest's own to be copied into."""
    if not moves_disks(context):
        return Advance()
    work, instance = context.operation.work, context.instance
    await ensure_image(
        context,
        node=work.target_node,
        pool_id=work.target_pool_id,
        digest=instance.image_digest,
        format=instance.image_format,
    )
    await context.agent(work.target_node).create_disk(context.caller, spec=spec_at_target(context))
    return Advance()


async def migrate(context: StepContext) -> Advance:
    """Move the guest, unless it has arrived already. Raises Cancelled, HypervisorError, NodeGone."""
    if await _has_arrived(context):
        return Advance()
    outcome = await _follow_migration(context)
    if outcome.phase is MigrationPhase.CANCELLED:
        raise Cancelled("cancelled on request; the guest runs on where it was")
    if outcome.phase is not MigrationPhase.COMPLETED:
        raise HypervisorError(f"the migration failed: {outcome.error or 'the agent told no cause'}")
    return Advance()


async def _has_arrived(context: StepContext) -> bool:
    """Whether the target has the guest, or had it: the last epoch it ran with is told with a guest that has stopped.

    A source that holds it paused has handed it over then, and its memory is of the past: it must never run on.
    """
    here, there = await _look(context)
    if here.state is GuestState.RUNNING or here.migrating:
        return False
    if there.state in _IN_MEMORY:
        return not there.migrating
    return there.state is GuestState.STOPPED and there.run_epoch >= context.instance.run_epoch


async def _look(context: StepContext) -> tuple[GuestStatus, GuestStatus]:
    """The guest on the source and on the target; ABSENT from a node that is proved not to run it."""
    work = context.operation.work
    return await _status(context, work.source_node), await _status(context, work.target_node)


async def _status(context: StepContext, node: str) -> GuestStatus:
    uid = context.instance.uid
    try:
        return await context.agent_to_end(node).get_guest(uid=uid)
    except NodeGone:
        return GuestStatus(uid, context.instance.name, GuestState.ABSENT)


async def _follow_migration(context: StepContext) -> MigrationProgress:
    work, arguments = context.operation.work, _arguments(context)
    source = context.agent(work.source_node)
    target_lease = context.view.leases.get(work.target_node)
    if target_lease is None:
        raise NodeGone(f"nodes/{work.target_node} lost its heartbeat before the migration began")
    context.check_may_receive(work.target_node)
    report = target_lease.report
    too_late: list[str] = []
    canceller = asyncio.ensure_future(_cancel_when_asked(context, too_late))
    last = MigrationProgress(MigrationPhase.FAILED, error="the agent told no outcome")
    try:
        moments = source.migrate_guest(
            context.caller,
            spec=context.instance.guest_spec(),
            destination=MigrationDestination(work.target_node, report.address, report.boot_id),
            limits=MigrationLimits(
                bandwidth_mib_s=arguments.bandwidth_mib_s,
                max_downtime_ms=arguments.max_downtime_ms,
                timeout_s=arguments.timeout_s,
                escalation=arguments.escalation,
                copies_disks=moves_disks(context),
                target_pool_id=work.target_pool_id,
            ),
        )
        async with aclosing(moments):
            async for last in moments:
                context.tell_progress(replace(last, decision=too_late[0]) if too_late else last)
    finally:
        canceller.cancel()
        await asyncio.gather(canceller, return_exceptions=True)
    return last


async def _cancel_when_asked(context: StepContext, too_late: list[str]) -> None:
    """The outcome comes through the migration itself; why it cannot be cancelled any more, in its progress."""
    await context.cancelled.wait()
    try:
        agent = context.agent(context.operation.work.source_node)
        await agent.cancel_migration(context.caller, uid=context.instance.uid)
    except FailedPrecondition as error:
        too_late.append(f"cannot be cancelled any more: {error.message}")


async def take_back(context: StepContext) -> Advance:
    """Make sure that the guest runs on the source and nothing of it is left on the target.

    One that has arrived all the same stays there. One that stands paused on the source is let run only when the target
    is known never to have run it.
    """
    if await _has_arrived(context):
        return Advance(is_done_after_all=True)
    here, there = await _look(context)
    uid, work = context.instance.uid, context.operation.work
    if there.state in _IN_MEMORY:
        raise Conflict("the target still holds the guest; asking again")
    if there.state is GuestState.STOPPED:
        with contextlib.suppress(NodeGone):
            await context.agent(work.target_node).remove_guest(context.caller, uid=uid)
    # One that is meant to be paused has not run on the target either, and stays as it is.
    if here.state is GuestState.PAUSED and context.instance.wanted_guest is GuestState.RUNNING:
        if context.is_fenced(work.target_node):
            # The target may have run it before it died. Of the two, only the disk is sure to be of the present.
            await context.agent(work.source_node).remove_guest(context.caller, uid=uid)
        else:
            await context.agent(work.source_node).resume_guest(context.caller, uid=uid)
    if here.state in _IN_MEMORY:
        return Advance()
    # It may have run on the target with the epoch that it had: whoever starts it now needs one of its own.
    epoch = work.run_epoch + 1
    return Advance(instance=lambda instance: replace(instance, run_epoch=max(instance.run_epoch, epoch)))


async def settle(context: StepContext) -> Advance:
    """Move the right to run: beside the disk first, then the record.

    A target that has died meanwhile had the guest all the same: failover finds it recorded there and restarts it. The
    source is known to run it no more; what it may have left is removed now, or, when it cannot be reached, by its own
    agent, which finds that the right has moved.
    """
    work = context.operation.work
    source, target = work.source_node, work.target_node
    with contextlib.suppress(NodeGone, AgentUnavailable, AgentIndefinite):
        await context.agent(source).remove_guest(context.caller, uid=context.instance.uid)
    with contextlib.suppress(NodeGone):
        await context.agent(target).claim_run_epoch(context.caller, spec=spec_at_target(context))
        await _let_run(context, target)
    return Advance(
        instance=lambda instance: replace(instance, node=target, pool_id=work.target_pool_id, run_epoch=work.run_epoch),
        release_from=(source,),
    )


async def _let_run(context: StepContext, target: str) -> None:
    """One that stood still on its source because its disk could not be reached arrives standing still."""
    if context.instance.wanted_guest is not GuestState.RUNNING:
        return
    agent, uid = context.agent(target), context.instance.uid
    status = await agent.get_guest(uid=uid)
    if status.state is GuestState.PAUSED and not status.migrating:
        with contextlib.suppress(FailedPrecondition):  # It has ended in this moment, and others see to that.
            await agent.resume_guest(context.caller, uid=uid)


async def delete_old_disks(context: StepContext) -> Advance:
    """The disks that were copied are not needed any more where they were."""
    work = context.operation.work
    await delete_disks_in(context, node=work.source_node, pool_id=work.source_pool_id)
    return Advance()


LIVE_MIGRATE = Definition(
    type=OperationType.LIVE_MIGRATE,
    steps=(
        Step("place", place, undo=release_target, deadline_s=30.0),
        Step("prepare_disks", prepare_disks, undo=drop_pulled_disks, deadline_s=3600.0),
        Step("migrate", migrate, undo=take_back, deadline_s=7200.0, commits=True, handles_cancel=True),
        Step("settle", settle, deadline_s=300.0),
        Step("delete_old_disks", delete_old_disks, deadline_s=300.0),
    ),
)
