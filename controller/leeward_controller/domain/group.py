"""A group: instances that are placed with regard to each other."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum


class GroupPolicy(StrEnum):
    """How the members of a group are placed."""

    AFFINITY = "AFFINITY"  # All on one node, or not at all.
    ANTI_AFFINITY = "ANTI_AFFINITY"  # Each on a node of its own, or not at all.
    SOFT_AFFINITY = "SOFT_AFFINITY"  # On one node where possible.
    SOFT_ANTI_AFFINITY = "SOFT_ANTI_AFFINITY"  # On different nodes where possible.


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One instance of a group, and the nodes on which it holds a place: none yet, one, or two while it moves."""

    instance_uid: str
    instance: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """One group. It is written together with each place that a member takes or gives up.

    So of two members that are placed at the same time, one sees where the other went.
    """

    name: str
    uid: str
    policy: GroupPolicy
    create_time: datetime
    members: tuple[GroupMember, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    request_id: str = ""

    def member(self, instance_uid: str) -> GroupMember | None:
        """The member that is this instance."""
        return next((member for member in self.members if member.instance_uid == instance_uid), None)

    def with_member(self, instance_uid: str, instance: str, *, on: str = "") -> "Group":
        """The same with this instance, holding a place on node `on` beside those that it holds."""
        known = self.member(instance_uid) or GroupMember(instance_uid, instance)
        nodes = tuple(sorted({*known.nodes, on} - {""}))
        return self._with(replace(known, nodes=nodes))

    def without_place(self, instance_uid: str, node: str) -> "Group":
        """The same with no place of this instance on `node`; it stays a member."""
        known = self.member(instance_uid)
        if known is None or node not in known.nodes:
            return self
        return self._with(replace(known, nodes=tuple(each for each in known.nodes if each != node)))

    def without(self, instance_uid: str) -> "Group":
        """The same without this instance."""
        return replace(self, members=tuple(each for each in self.members if each.instance_uid != instance_uid))

    def _with(self, member: GroupMember) -> "Group":
        others = [each for each in self.members if each.instance_uid != member.instance_uid]
        return replace(self, members=tuple(sorted([*others, member], key=lambda each: each.instance)))
