"""Steps that find and give back a place, shared by every operation that needs one."""

from dataclasses import replace

from leeward.errors import NodeUnfit, Violation
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Reservation
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance
from leeward_controller.scheduler.candidates import candidates
from leeward_controller.scheduler.placement import PlacementRequest, choose, plan_placement


def reservation_of(instance: Instance) -> Reservation:
    """What an instance holds of the node it is on."""
    size = instance.resources
    return Reservation(instance.uid, instance.name, size.vcpus, size.memory_mib, size.disk_gib)


def choose_node(context: StepContext, *, named: str, leaving: str = "") -> str:
    """The node to go to, by the scheduler. A node tried in vain is not tried again, nor the one being left.

    Raises NodeUnfit, NoNodeFits.
    """
    work = context.operation.work
    if named and named == leaving:
        why = "the instance is on it already"
        raise NodeUnfit(f"nodes/{named} cannot take it: {why}", violations=[Violation("NODE", f"nodes/{named}", why)])
    excluded = [(node, f"it was tried and failed: {work.note}") for node in work.excluded_nodes]
    if leaving:
        excluded.append((leaving, "it is the node being left"))
    request = PlacementRequest(
        instance_uid=context.instance.uid,
        resources=context.instance.resources,
        pool_id=context.instance.pool_id,
        node=named,
        excluded=tuple(excluded),
    )
    placement = plan_placement(candidates(context.view), request, policy=context.surroundings.policy)
    return choose(placement, request, spread=context.surroundings.rng.uniform(0.0, 0.999))


async def release_target(context: StepContext) -> Advance:
    """Give back the place that was reserved, and remember not to try that node again."""
    work = context.operation.work
    if not work.target_node:
        return Advance()
    excluded = (*work.excluded_nodes, work.target_node)
    return Advance(work=replace(work, target_node="", excluded_nodes=excluded), release_from=(work.target_node,))
