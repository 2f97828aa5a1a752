"""Drift between records: what is held on nodes, the members of groups, and what is said to be going on."""

from collections.abc import Iterator
from dataclasses import replace

from leeward_controller.audit.model import ClearOperation, Contents, Finding, FindingKind, SetGroup, SetReservation
from leeward_controller.domain.group import Group, GroupMember
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Reservation
from leeward_controller.operations.placing import places_of


def reservation_findings(contents: Contents) -> Iterator[Finding]:
    """Reservations that no instance accounts for, and instances without theirs."""
    for allocation in contents.allocations:
        for reservation in allocation.reservations:
            if reservation.instance_uid not in contents.busy:
                yield from _judge(contents, allocation.node, reservation)
    held = {(a.node, r.instance_uid) for a in contents.allocations for r in a.reservations}
    for instance in contents.settled():
        for node, wanted in sorted(places_of(instance).items()):
            if (node, instance.uid) not in held:
                yield Finding(
                    FindingKind.INSTANCE_WITHOUT_RESERVATION,
                    instance.name,
                    f"is on nodes/{node}, where nothing is held for it: its room could be given to others",
                    SetReservation(node, instance.uid, wanted),
                )


def _judge(contents: Contents, node: str, held: Reservation) -> Iterator[Finding]:
    free = SetReservation(node, held.instance_uid, None)
    instance = contents.instances.get(held.instance_uid)
    if instance is None:
        yield Finding(
            FindingKind.RESERVATION_OF_NO_INSTANCE,
            f"nodes/{node}",
            f"holds {_size(held)} for {held.instance} ({held.instance_uid}), which does not exist",
            free,
        )
        return
    wanted = places_of(instance).get(node)
    if wanted is None:
        yield Finding(
            FindingKind.RESERVATION_ON_WRONG_NODE,
            instance.name,
            f"{_size(held)} are held on nodes/{node}, while it is on {_place(instance)}",
            free,
        )
    elif wanted != held:
        yield Finding(
            FindingKind.RESERVATION_OF_WRONG_SIZE,
            instance.name,
            f"{_size(held)} are held on nodes/{node}, while it takes {_size(wanted)}",
            SetReservation(node, instance.uid, wanted),
        )


def group_findings(contents: Contents) -> Iterator[Finding]:
    """Groups whose members are not those that the instances, and what is held for them, say."""
    held: dict[str, list[str]] = {}
    for allocation in contents.allocations:
        for reservation in allocation.reservations:
            held.setdefault(reservation.instance_uid, []).append(allocation.node)
    for group in contents.groups:
        wanted = [member for member in group.members if member.instance_uid in contents.busy]
        wanted += [
            GroupMember(instance.uid, instance.name, tuple(sorted(held.get(instance.uid, ()))))
            for instance in contents.settled()
            if instance.group == group.name
        ]
        mended = replace(group, members=tuple(sorted(wanted, key=lambda member: member.instance)))
        if mended != group:
            why = "; ".join(_differences(group, mended))
            yield Finding(FindingKind.GROUP_MEMBERSHIP, group.name, why, SetGroup(mended))


def _differences(group: Group, wanted: Group) -> Iterator[str]:
    for member in group.members:
        other = wanted.member(member.instance_uid)
        if other is None:
            yield f"has the member {member.instance} ({member.instance_uid}), which is not in it"
        elif other != member:
            yield f"has {member.instance} on {_nodes(member.nodes)}, while it holds a place on {_nodes(other.nodes)}"
    for member in wanted.members:
        if group.member(member.instance_uid) is None:
            yield f"lacks the member {member.instance}"


def operation_findings(contents: Contents) -> Iterator[Finding]:
    """Instances and nodes that wait for the end of what has ended."""
    subjects = [(i.name, i.current_operation) for i in contents.settled()]
    subjects += [(node.name, node.current_operation) for node in contents.nodes]
    for subject, name in subjects:
        operation = contents.operations.get(name)
        if not name or (operation is not None and not operation.phase.ended):
            continue
        how = "does not exist" if operation is None else f"has ended ({operation.phase})"
        yield Finding(
            FindingKind.OPERATION_STILL_CURRENT,
            subject,
            f"{name} is recorded as going on, but {how}",
            ClearOperation(subject),
        )


def _size(held: Reservation) -> str:
    return f"{held.vcpus} vCPUs, {held.memory_mib} MiB and {held.disk_gib} GiB"


def _place(instance: Instance) -> str:
    return f"nodes/{instance.node}" if instance.node else "no node"


def _nodes(nodes: tuple[str, ...]) -> str:
    return ", ".join(f"nodes/{node}" for node in nodes) or "no node"
