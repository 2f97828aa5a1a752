"""Delete and undelete: end what else is going on, then the guest; keep it for a while, or free all that it holds."""

import contextlib
from dataclasses import replace
from datetime import datetime, timedelta

from leeward.agent.types import GuestState
from leeward.errors import NodeGone
from leeward_controller.domain.instance import Deletion, Instance, InstanceState
from leeward_controller.domain.operation import DeleteArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import delete_disks_in
from leeward_controller.operations.predecessors import wait_for_predecessor
from leeward_controller.operations.running import bring_up, halt
from leeward_controller.operations.step import Advance, Definition, Step

_S = InstanceState
_NEVER_RETAINED = frozenset({_S.BUILDING, _S.SOFT_DELETED})


async def remove_guest(context: StepContext) -> Advance:
    """Kill the guest and forget it; on a fenced node it is dead already. A retained one ends here."""
    instance = context.instance
    if instance.node:
        with contextlib.suppress(NodeGone):
            await context.agent(instance.node).remove_guest(context.caller, uid=instance.uid)
    retention_s = _retention_s(context)
    if not retention_s:
        return Advance()
    expire_time = context.surroundings.clock.now() + timedelta(seconds=retention_s)
    return Advance(instance=lambda instance: _retained(instance, expire_time=expire_time), skip_rest=True)


def _retention_s(context: StepContext) -> float:
    """How long it can be brought back. What never came to run, or is being deleted again, goes at once."""
    arguments, instance = context.operation.arguments, context.instance
    assert isinstance(arguments, DeleteArguments)
    nothing_to_keep = not instance.node and instance.state is not _S.SHELVED_OFFLOADED
    return 0.0 if nothing_to_keep or instance.state in _NEVER_RETAINED else arguments.retention_s


def _retained(instance: Instance, *, expire_time: datetime) -> Instance:
    # The memory of a paused guest is gone with its process.
    before = _S.STOPPED if instance.state is _S.PAUSED else instance.state
    return replace(instance, state=_S.SOFT_DELETED, deletion=Deletion(before, expire_time))


async def delete_disk(context: StepContext) -> Advance:
    """Delete its disks through any node with the pool, and with them its places, its record, and its shelved image.

    An instance without a run epoch never had a place, hence no disk; one that is offloaded has none any more. What is
    in a pool of a lost node is left to that node's return.
    """
    instance = context.instance
    if instance.run_epoch and instance.pool_id:
        with contextlib.suppress(NodeGone):
            agent = context.agent_with_pool(instance.pool_id, preferred=instance.node)
            await agent.delete_disk(context.caller, spec=instance.guest_spec())
    if instance.resize is not None:
        await delete_disks_in(context, node=instance.resize.node, pool_id=instance.resize.pool_id)
    held = [stored.value.node for stored in context.view.allocations.values() if stored.value.holds(instance.uid)]
    places = {*held} | instance.holding_nodes
    return Advance(
        remove_instance=True,
        release_from=tuple(sorted(places)),
        drop_image=instance.shelf.image if instance.shelf else "",
    )


async def bring_back(context: StepContext) -> Advance:
    """Have it in the state that it had, its guest running if it was."""
    deletion = context.instance.deletion
    assert deletion is not None, "the table lets only a SOFT_DELETED instance come here"
    before = replace(context.instance, state=deletion.state_before, deletion=None)
    if before.wanted_guest is not GuestState.STOPPED:
        await bring_up(context, node=before.node, spec=before.guest_spec(), wanted=before.wanted_guest)
    return Advance(instance=lambda instance: replace(instance, state=deletion.state_before, deletion=None))


async def end_again(context: StepContext) -> Advance:
    """Undo of a return."""
    if context.instance.node:
        await halt(context, grace_period_s=0.0)
    return Advance()


DELETE = Definition(
    type=OperationType.DELETE,
    steps=(
        Step("wait_for_predecessor", wait_for_predecessor, deadline_s=120.0),
        Step("remove_guest", remove_guest, deadline_s=120.0, commits=True),
        Step("delete_disk", delete_disk, deadline_s=120.0),
    ),
)
UNDELETE = Definition(
    type=OperationType.UNDELETE,
    steps=(Step("bring_back", bring_back, undo=end_again, deadline_s=120.0),),
)
