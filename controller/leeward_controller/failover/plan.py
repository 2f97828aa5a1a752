"""What would happen if a node died now. Pure: nothing is reserved, nothing is asked.

Instances are placed one after another, in the order in which failover takes them, each beside those placed before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.node import Reservation
from leeward_controller.scheduler.model import Candidate, PlacementPolicy, PlacementRequest
from leeward_controller.scheduler.placement import plan_placement

_NEVER_RAN = frozenset({InstanceState.BUILDING, InstanceState.DELETED})


@dataclass(frozen=True, slots=True)
class PlannedPlacement:
    """Where one instance would go, and why there or nowhere; `needed` unless failover would leave it alone anyway."""

    instance: str
    node: str
    reason: str
    needed: bool = True


@dataclass(frozen=True, slots=True)
class FailoverPlan:
    """One entry an instance, in the order in which they would be placed."""

    placements: tuple[PlannedPlacement, ...]

    @property
    def survivable(self) -> bool:
        """Whether every instance that failover would restart finds a place."""
        return all(planned.node or not planned.needed for planned in self.placements)


def plan_failover(
    node: str,
    instances: Iterable[Instance],
    candidates: Iterable[Candidate],
    *,
    request_of: Callable[[Instance], PlacementRequest],
    policy: PlacementPolicy,
) -> FailoverPlan:
    """The plan for `node`'s instances over the other candidates."""
    left = {each.node: each for each in candidates if each.node != node}
    placements = []
    for instance in sorted(instances, key=lambda each: (each.restart_priority.tier, each.name)):
        if not instance.restart_on_failure:
            placements.append(PlannedPlacement(instance.name, "", "it is not to be restarted on failure", needed=False))
        elif instance.state in _NEVER_RAN:
            placements.append(PlannedPlacement(instance.name, "", f"it is {instance.state}", needed=False))
        else:
            placements.append(_place(instance, left, request_of(instance), policy))
    return FailoverPlan(tuple(placements))


def _place(
    instance: Instance, left: dict[str, Candidate], request: PlacementRequest, policy: PlacementPolicy
) -> PlannedPlacement:
    """Place one, and take what it needs from the candidate that it goes to."""
    placement = plan_placement(left.values(), request, policy=policy)
    if not placement.ranked:
        whys = "; ".join(f"nodes/{node}: {why}" for node, why in sorted(placement.rejected.items())[:8])
        return PlannedPlacement(instance.name, "", f"no node fits: {whys or 'there is no other node'}")
    place, size = placement.ranked[0], request.resources
    taken = Reservation(instance.uid, instance.name, size.vcpus, size.memory_mib, request.disk_gib, place.pool_id)
    chosen = left[place.node]
    left[place.node] = replace(chosen, allocation=chosen.allocation.with_reservation(taken))
    others = len(placement.ranked) - 1
    return PlannedPlacement(instance.name, place.node, f"it is the best of {others + 1} nodes that fit")
