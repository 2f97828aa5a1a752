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
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
)
from leeward.errors import Cancelled, Conflict, HypervisorError, NodeGone
from leeward_controller.domain.operation import LiveMigrateArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.placing import choose_node, release_target, reservation_of
from leeward_controller.operations.step import Advance, Definition, Step


def _arguments(context: StepContext) -> LiveMigrateArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, LiveMigrateArguments)
    return arguments


async def place(context: StepContext) -> Advance:
    """Choose the target and reserve on it."""
    source = context.instance.node
    target = choose_node(context, named=_arguments(context).node, leaving=source)
    epoch = context.instance.run_epoch + 1
    return Advance(
        work=replace(context.operation.work, source_node=source, target_node=target, run_epoch=epoch),
        reserve_on=target,
        reservation=reservation_of(context.instance),
    )


async def migrate(context: StepContext) -> Advance:
    """Move the guest, unless it has arrived already. Raises Cancelled, HypervisorError, NodeGone."""
    if await _has_arrived(context):
        return Advance()
    outcome = await _follow_migration(context)
    if outcome.phase is MigrationPhase.CANCELLED:
        raise Cancelled("cancelled on request; the guest runs on where it was")
    if outcome.phase is not MigrationPhase.COMPLETED:
        raise HypervisorError(f"the migration failed and the guest runs on where it was: {outcome.error}")
    return Advance()


async def _has_arrived(context: StepContext) -> bool:
    work = context.operation.work
    try:
        there = await context.agent(work.target_node).get_guest(uid=context.instance.uid)
    except NodeGone:
        return False
    if there.state is not GuestState.RUNNING or there.migrating:
        return False
    try:
        here = await context.agent(work.source_node).get_guest(uid=context.instance.uid)
    except NodeGone:
        return True
    return here.state in (GuestState.ABSENT, GuestState.STOPPED)


async def _follow_migration(context: StepContext) -> MigrationProgress:
    work, arguments = context.operation.work, _arguments(context)
    source = context.agent(work.source_node)
    target_lease = context.view.leases.get(work.target_node)
    if target_lease is None:
        raise NodeGone(f"nodes/{work.target_node} lost its heartbeat before the migration began")
    canceller = asyncio.ensure_future(_cancel_when_asked(context))
    last = MigrationProgress(MigrationPhase.FAILED, error="the agent told no outcome")
    try:
        moments = source.migrate_guest(
            context.caller,
            spec=context.instance.guest_spec(),
            destination=MigrationDestination(work.target_node, target_lease.report.address),
            limits=MigrationLimits(
                bandwidth_mib_s=arguments.bandwidth_mib_s,
                max_downtime_ms=arguments.max_downtime_ms,
                timeout_s=arguments.timeout_s,
            ),
        )
        async with aclosing(moments):
            async for last in moments:
                context.tell_progress(last)
    finally:
        canceller.cancel()
        await asyncio.gather(canceller, return_exceptions=True)
    return last


async def _cancel_when_asked(context: StepContext) -> None:
    """The outcome of the cancellation comes through the migration itself: it may be too late for it."""
    await context.cancelled.wait()
    await context.agent(context.operation.work.source_node).cancel_migration(context.caller, uid=context.instance.uid)


async def take_back(context: StepContext) -> Advance:
    """Make sure that the guest runs on the source and nothing of it is left on the target.

    A guest that stands paused on the source is let run only when the target is known not to run it.
    """
    work = context.operation.work
    there = GuestState.ABSENT
    try:
        target = context.agent(work.target_node)
        there = (await target.get_guest(uid=context.instance.uid)).state
        if there is GuestState.STOPPED:
            await target.remove_guest(context.caller, uid=context.instance.uid)
    except NodeGone:
        there = GuestState.ABSENT
    if there in (GuestState.RUNNING, GuestState.PAUSED):
        raise Conflict("the target still holds the guest; asking again")
    try:
        source = context.agent(work.source_node)
        if (await source.get_guest(uid=context.instance.uid)).state is GuestState.PAUSED:
            await source.resume_guest(context.caller, uid=context.instance.uid)
    except NodeGone:
        return Advance()
    return Advance()


async def settle(context: StepContext) -> Advance:
    """Move the right to run: beside the disk first, then the record.

    A target that has died meanwhile had the guest all the same: failover finds it recorded there and restarts it.
    """
    work = context.operation.work
    source, target = work.source_node, work.target_node
    await _require_gone_from_source(context)
    with contextlib.suppress(NodeGone):
        await context.agent(target).claim_run_epoch(
            context.caller, spec=context.instance.guest_spec(run_epoch=work.run_epoch)
        )
    return Advance(
        instance=lambda instance: replace(instance, node=target, run_epoch=work.run_epoch),
        release_from=(source,),
    )


async def _require_gone_from_source(context: StepContext) -> None:
    work = context.operation.work
    try:
        here = await context.agent(work.source_node).get_guest(uid=context.instance.uid)
    except NodeGone:
        return
    if here.state in (GuestState.RUNNING, GuestState.PAUSED):
        raise Conflict(f"the source still holds the guest ({here.state}); asking again")
    if here.state is GuestState.STOPPED:
        await context.agent(work.source_node).remove_guest(context.caller, uid=context.instance.uid)


LIVE_MIGRATE = Definition(
    type=OperationType.LIVE_MIGRATE,
    steps=(
        Step("place", place, undo=release_target, deadline_s=30.0),
        Step("migrate", migrate, undo=take_back, deadline_s=7200.0, commits=True, handles_cancel=True),
        Step("settle", settle, deadline_s=300.0),
    ),
)
