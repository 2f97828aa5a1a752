"""Whether the cluster could restart elsewhere all that any one of its nodes runs. Pure, and quick: each launch asks it.

Each node is thought lost in turn, together with the fullest others when the policy asks for more than one, and its
guests are put into the room that is left: the largest first, each on the first node with room for it that it may go to.
That can miss a way that exists, never find one that does not, and costs milliseconds for a hundred nodes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class HeadroomRule(StrEnum):
    """What becomes of a request that would leave too little room to lose a node."""

    OFF = "OFF"  # Nothing is looked at.
    WARN = "WARN"  # It is let in, and the log tells what is lacking.
    REFUSE = "REFUSE"  # It is refused, and told what is lacking.


@dataclass(frozen=True, slots=True)
class HeadroomPolicy:
    """How many nodes may be lost at once, and what happens to a request after which that is not so."""

    rule: HeadroomRule = HeadroomRule.OFF
    survive_node_losses: int = 1


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has left to promise."""

    node: str
    memory_mib: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class Guest:
    """An instance that failover would restart, where it is, and which nodes its rules allow. `apart` names the group
    whose members must not share a node."""

    instance: str
    node: str
    memory_mib: int
    vcpus: int
    allowed: frozenset[str]
    apart: str = ""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What would have no place if a node was lost."""

    node: str
    instances: tuple[str, ...]
    memory_mib: int
    vcpus: int

    @property
    def told(self) -> str:
        """In words."""
        some = ", ".join(self.instances[:3]) + (", ..." if len(self.instances) > 3 else "")
        return (
            f"if it was lost, {len(self.instances)} of its instances had no place ({some}): "
            f"{self.memory_mib} MiB of memory and {self.vcpus} vCPUs are lacking elsewhere"
        )


def shortfalls(rooms: Sequence[Room], guests: Iterable[Guest], *, losses: int = 1) -> tuple[Shortfall, ...]:
    """The nodes whose loss could not be made good, by name; empty when all could. Nothing survives more losses than
    there are nodes."""
    on_node: dict[str, list[Guest]] = defaultdict(list)
    for guest in guests:
        on_node[guest.node].append(guest)
    for each in on_node.values():
        each.sort(key=lambda guest: (-guest.memory_mib, -guest.vcpus, guest.instance))
    weight = {node: sum(guest.memory_mib for guest in each) for node, each in on_node.items()}
    fullest = sorted(on_node, key=lambda node: (-weight[node], node))
    found = []
    for node in sorted(on_node):
        lost = {node, *[other for other in fullest if other != node][: losses - 1]}
        without = _without_place(rooms, on_node, lost)
        if without:
            found.append(
                Shortfall(
                    node,
                    tuple(guest.instance for guest in without),
                    sum(guest.memory_mib for guest in without),
                    sum(guest.vcpus for guest in without),
                )
            )
    return tuple(found)


def _without_place(rooms: Sequence[Room], on_node: dict[str, list[Guest]], lost: set[str]) -> list[Guest]:
    """The guests of lost nodes for which no room is found."""
    left = {room.node: [room.memory_mib, room.vcpus] for room in rooms if room.node not in lost}
    order = sorted(left, key=lambda node: (-left[node][0], node))
    groups = _groups(on_node, lost)
    moving = [guest for node in sorted(lost) for guest in on_node.get(node, ())]
    moving.sort(key=lambda guest: -guest.memory_mib)
    without = []
    for guest in moving:
        taken = groups[guest.apart] if guest.apart else set[str]()
        for node in order:
            free = left[node]
            fits = free[0] >= guest.memory_mib and free[1] >= guest.vcpus
            if fits and node in guest.allowed and node not in taken:
                free[0] -= guest.memory_mib
                free[1] -= guest.vcpus
                taken.add(node)
                break
        else:
            without.append(guest)
    return without


def _groups(on_node: dict[str, list[Guest]], lost: set[str]) -> dict[str, set[str]]:
    """The nodes that each group's members hold that are not lost."""
    held: dict[str, set[str]] = defaultdict(set)
    for node, guests in on_node.items():
        if node not in lost:
            for guest in guests:
                if guest.apart:
                    held[guest.apart].add(node)
    return held
