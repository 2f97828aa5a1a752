"""Where an instance goes: filters, then weights. Pure: the same snapshot and request give the same answer.

Each filter answers why a node is out, in words an operator can act on; every rejected node keeps its first reason.
Those that are left are ranked by their share of free memory ("spread"), names breaking ties. Many instances are placed
in the same instant, by one replica or by several, when a node dies; each of them chooses among the nodes that are about
as free as the best, so that they do not all want the same one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from leeward.errors import NodeUnfit, NoNodeFits, Violation
from leeward_controller.domain.instance import Resources
from leeward_controller.domain.node import NodeAllocation, NodeCondition

_ALIKE = 0.05
"""Nodes whose shares of free memory differ by less are taken to be as good as each other."""

_LEAST_CHOICE = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the scheduler sees it."""

    node: str
    condition: NodeCondition
    alive: bool
    cordoned: bool
    vcpus: int
    memory_mib: int
    pool_ids: frozenset[str]
    allocation: NodeAllocation
    draining: bool = False


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What has to be placed. `node` names one node or is empty; `excluded` maps nodes to why they are out already."""

    instance_uid: str
    resources: Resources
    pool_id: str
    node: str = ""
    excluded: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """How far a node may be promised. Guests share processors; memory is what it is."""

    vcpu_overcommit: float = 4.0
    reserved_memory_mib: int = 512


@dataclass(frozen=True, slots=True)
class Placement:
    """The answer: the nodes that fit, best first, and why each other one does not.

    The first `alike` of them are about as free as the best.
    """

    ranked: tuple[str, ...]
    rejected: dict[str, str]
    alike: int = 1


def plan_placement(
    candidates: Iterable[Candidate], request: PlacementRequest, *, policy: PlacementPolicy | None = None
) -> Placement:
    """Rank the nodes that can take the request, and tell why the others cannot. Never raises: see `choose`."""
    policy = policy or PlacementPolicy()
    fitting: list[tuple[float, str]] = []
    rejected: dict[str, str] = {}
    for candidate in candidates:
        reason = next((r for f in FILTERS if (r := f(candidate, request, policy))), "")
        if reason:
            rejected[candidate.node] = reason
        else:
            fitting.append((-_free_share(candidate, policy), candidate.node))
    fitting.sort()
    alike = sum(1 for less_free, _ in fitting if less_free <= fitting[0][0] + _ALIKE)
    return Placement(tuple(node for _, node in fitting), rejected, alike)


def choose(placement: Placement, request: PlacementRequest, *, spread: float = 0.0) -> str:
    """The node to take; `spread` in [0, 1) picks among those about as free as the best, and at least the best three.

    Raises NodeUnfit (the node asked for by name cannot take it), NoNodeFits (none can; one violation a node).
    """
    if placement.ranked:
        best = placement.ranked[: max(placement.alike, _LEAST_CHOICE)]
        return best[int(spread * len(best))]
    violations = [Violation("NODE", f"nodes/{node}", why) for node, why in sorted(placement.rejected.items())]
    if request.node:
        why = placement.rejected.get(request.node, "does not exist")
        raise NodeUnfit(
            f"nodes/{request.node} cannot take it: {why}",
            violations=[Violation("NODE", f"nodes/{request.node}", why)],
        )
    if not violations:
        raise NoNodeFits("no node has registered yet", metadata={"nodes": "0"})
    reasons = "; ".join(f"{v.subject}: {v.description}" for v in violations[:8])
    raise NoNodeFits(f"no node fits: {reasons}", violations=violations, metadata={"nodes": str(len(violations))})


def _free_share(candidate: Candidate, policy: PlacementPolicy) -> float:
    usable = max(1, candidate.memory_mib - policy.reserved_memory_mib)
    return (usable - candidate.allocation.memory_mib) / usable


def _named(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    return f"nodes/{request.node} was asked for" if request.node and candidate.node != request.node else ""


def _not_excluded(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    return dict(request.excluded).get(candidate.node, "")


def _alive(candidate: Candidate, _: PlacementRequest, __: PlacementPolicy) -> str:
    return "" if candidate.alive else f"its heartbeat is lost ({candidate.condition})"


def _takes_new(candidate: Candidate, _: PlacementRequest, __: PlacementPolicy) -> str:
    if candidate.cordoned:
        return "it is cordoned"
    if candidate.draining:
        return "its agent is stopping"
    return "" if candidate.condition is NodeCondition.READY else f"it is {candidate.condition}"


def _has_pool(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    return "" if request.pool_id in candidate.pool_ids else f"it has no working pool {request.pool_id}"


def _has_vcpus(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> str:
    if request.resources.vcpus > candidate.vcpus:
        return f"it has {candidate.vcpus} vCPUs, {request.resources.vcpus} are asked for"
    taken, _ = candidate.allocation.beside(request.instance_uid)
    limit = int(candidate.vcpus * policy.vcpu_overcommit)
    free = limit - taken
    wanted = request.resources.vcpus
    return "" if wanted <= free else f"{free} of {limit} vCPUs are free, {wanted} are asked for"


def _has_memory(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> str:
    _, taken_mib = candidate.allocation.beside(request.instance_uid)
    usable = max(0, candidate.memory_mib - policy.reserved_memory_mib)
    free = usable - taken_mib
    wanted = request.resources.memory_mib
    return "" if wanted <= free else f"{free} of {usable} MiB memory are free, {wanted} are asked for"


FILTERS: tuple[Callable[[Candidate, PlacementRequest, PlacementPolicy], str], ...] = (
    _named,
    _not_excluded,
    _alive,
    _takes_new,
    _has_pool,
    _has_vcpus,
    _has_memory,
)
