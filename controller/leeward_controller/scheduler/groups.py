"""What a group asks of a member's place. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from leeward_controller.domain.group import Group, GroupPolicy


@dataclass(frozen=True, slots=True)
class Companions:
    """The places of the other members: for each that has one, its name and the nodes that it holds."""

    group: str
    policy: GroupPolicy
    places: tuple[tuple[str, tuple[str, ...]], ...] = ()


def companions_of(group: Group, instance_uid: str, *, is_left: Callable[[str], bool]) -> Companions:
    """What of `group` matters for one member's place. `is_left` tells of a node that it is lost or being emptied.

    Members that are to be together may leave such a node one after the other: those that are still recorded there do
    not hold back the one that goes first, and the others follow it.
    """
    own = group.member(instance_uid)
    left = {node for node in own.nodes if is_left(node)} if own is not None else set[str]()
    places = []
    for member in group.members:
        nodes = tuple(node for node in member.nodes if node not in left or not _together(group.policy))
        if member.instance_uid != instance_uid and nodes:
            places.append((member.instance, nodes))
    return Companions(group.name, group.policy, tuple(places))


def why_not_with(companions: Companions, node: str) -> str:
    """Why a hard rule keeps the instance from `node`; empty when it does not."""
    if companions.policy is GroupPolicy.AFFINITY:
        for name, nodes in companions.places:
            if node not in nodes:
                return f"{companions.group} keeps its members together, and {name} is on nodes/{nodes[0]}"
    if companions.policy is GroupPolicy.ANTI_AFFINITY:
        for name, nodes in companions.places:
            if node in nodes:
                return f"{companions.group} keeps its members apart, and {name} is on it"
    return ""


def regret(companions: Companions | None, node: str) -> int:
    """How many of the others a soft rule would rather see elsewhere; 0 is best."""
    if companions is None:
        return 0
    here = sum(1 for _, nodes in companions.places if node in nodes)
    if companions.policy is GroupPolicy.SOFT_AFFINITY:
        return len(companions.places) - here
    return here if companions.policy is GroupPolicy.SOFT_ANTI_AFFINITY else 0


def _together(policy: GroupPolicy) -> bool:
    return policy in (GroupPolicy.AFFINITY, GroupPolicy.SOFT_AFFINITY)
