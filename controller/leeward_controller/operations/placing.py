"""Steps that find and give back a place, shared by every operation that needs one."""

from dataclasses import replace

from leeward.errors import FailedPrecondition, NodeUnfit, Violation
from leeward_controller.domain.instance import Instance, Resources
from leeward_controller.domain.node import Reservation
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance
from leeward_controller.scheduler.candidates import candidate, candidates
from leeward_controller.scheduler.model import Place
from leeward_controller.scheduler.placement import choose, plan_placement
from leeward_controller.scheduler.requests import is_lost_with_its_node, request_for

__all__ = ["Place", "choose_place", "larger", "places_of", "release_target", "reservation_of"]


def reservation_of(instance: Instance) -> Reservation:
    """What an instance holds of the node it is on.

    Written as a step's reservation it is held in the pool that the operation has chosen (`Work.target_pool_id`), where
    it has chosen one.
    """
    size = instance.resources
    disk_gib = size.disk_gib + sum(instance.data_disks_gib)
    return Reservation(instance.uid, instance.name, size.vcpus, size.memory_mib, disk_gib, instance.pool_id)


def larger(one: Reservation, other: Reservation) -> Reservation:
    """A place that has room for either."""
    return replace(
        one,
        vcpus=max(one.vcpus, other.vcpus),
        memory_mib=max(one.memory_mib, other.memory_mib),
        disk_gib=max(one.disk_gib, other.disk_gib),
    )


def places_of(instance: Instance) -> dict[str, Reservation]:
    """What an instance holds, by node: where it is, and until a resize is ended also what it had before."""
    places: dict[str, Reservation] = {}
    if instance.node:
        places[instance.node] = reservation_of(instance)
    kept = instance.resize
    if kept is not None and kept.node:
        before = reservation_of(replace(instance, resources=kept.resources, pool_id=kept.pool_id))
        here = places.get(kept.node)
        places[kept.node] = before if here is None else larger(here, before)
    return places


def choose_place(
    context: StepContext,
    *,
    named: str = "",
    leaving: str = "",
    resources: Resources | None = None,
    for_live: bool = False,
    abandons_disks: bool = False,
    preferred: str = "",
) -> Place:
    """The node and pool to go to, by the scheduler. A node tried in vain is not tried again, nor the one being left.

    A place is sought for `resources` where they are to change. `for_live` asks for a processor that the running guest
    can go on with. With `abandons_disks` an instance whose disks are lost with its node may go where there are none.
    The `preferred` node is taken when it fits, without a look at the others.
    Raises NodeUnfit, NoNodeFits, and FailedPrecondition when the disks are lost and must not be abandoned.
    """
    work, instance = context.operation.work, context.instance
    if named and named == leaving:
        why = "the instance is on it already"
        raise NodeUnfit(f"nodes/{named} cannot take it: {why}", violations=[Violation("NODE", f"nodes/{named}", why)])
    if leaving and not abandons_disks:
        _require_disks(context, leaving)
    excluded = [(node, f"it was tried and failed: {work.note}") for node in work.excluded_nodes]
    if leaving:
        excluded.append((leaving, "it is the node being left"))
    request = request_for(
        context.view,
        instance,
        named=named,
        excluded=tuple(excluded),
        resources=resources,
        for_live=for_live,
        abandons_disks=abandons_disks,
    )
    if preferred and not named and (found := candidate(context.view, preferred)) is not None:
        alone = plan_placement((found,), request, policy=context.surroundings.policy)
        if alone.ranked:
            return alone.ranked[0]
    placement = plan_placement(candidates(context.view), request, policy=context.surroundings.policy)
    return choose(placement, request, spread=context.surroundings.rng.uniform(0.0, 0.999))


def _require_disks(context: StepContext, leaving: str) -> None:
    """Raises FailedPrecondition when the disks can be had neither elsewhere nor from the node being left."""
    instance = context.instance
    if instance.pool_id and context.is_fenced(leaving) and is_lost_with_its_node(context.view, instance):
        why = f"its disks are in pool {instance.pool_id}, which only nodes/{leaving} has"
        raise FailedPrecondition(
            f"{instance.name} cannot leave nodes/{leaving}: {why}; allow a rebuild to have them made anew",
            reason="DISKS_LOST",
            violations=[Violation("DISKS", f"nodes/{leaving}", why)],
            resource=instance.name,
        )


async def release_target(context: StepContext) -> Advance:
    """Give back the place that was reserved, and remember not to try that node again.

    What a resize that is not ended holds there stays.
    """
    work = context.operation.work
    if not work.target_node:
        return Advance()
    excluded = (*work.excluded_nodes, work.target_node)
    freed = replace(work, target_node="", target_pool_id="", excluded_nodes=excluded)
    kept = places_of(replace(context.instance, node="")).get(work.target_node)
    if kept is not None:
        return Advance(work=freed, reserve_on=work.target_node, reservation=kept)
    return Advance(work=freed, release_from=(work.target_node,))
