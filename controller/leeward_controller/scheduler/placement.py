"""Where an instance goes: filters, then weights. Pure: the same snapshot and request give the same answer.

Every node that is turned down keeps its first reason. Those that are left are ranked by what the group would rather
have, then by the labels preferred, then by the kind of pool, and at last by their share of free memory: the largest
first to spread, the smallest first to pack. Names break ties. Many instances are placed in the same instant, by one
replica or by several, when a node dies; when spreading, each of them chooses among the nodes that are about as free as
the best, so that they do not all want the same one.
"""

from collections.abc import Iterable
from typing import NamedTuple

from leeward.errors import NodeUnfit, NoNodeFits, Violation
from leeward_controller.scheduler.filters import usable_memory_mib, why_not
from leeward_controller.scheduler.groups import regret
from leeward_controller.scheduler.model import (
    Candidate,
    CandidatePool,
    Place,
    Placement,
    PlacementPolicy,
    PlacementRequest,
    Ranking,
)
from leeward_controller.scheduler.pools import less_wanted, pick_pool

__all__ = [
    "Candidate",
    "CandidatePool",
    "Place",
    "Placement",
    "PlacementPolicy",
    "PlacementRequest",
    "Rank",
    "Ranking",
    "choose",
    "plan_placement",
    "rank",
]

ALIKE = 0.05
"""Nodes whose shares of free memory differ by less are taken to be as good as each other."""

LEAST_CHOICE = 3


class Rank(NamedTuple):
    """How good a place is; the lowest is the best."""

    regret: int
    labels_missed: int
    less_wanted_pool: bool
    share: float
    node: str
    pool_id: str

    @property
    def wishes(self) -> tuple[int, int, bool]:
        """What was wished for beside room: places with the same are equals."""
        return self.regret, self.labels_missed, self.less_wanted_pool


def plan_placement(
    candidates: Iterable[Candidate], request: PlacementRequest, *, policy: PlacementPolicy | None = None
) -> Placement:
    """Rank the nodes that can take the request, and tell why the others cannot. Never raises: see `choose`."""
    policy = policy or PlacementPolicy()
    fitting: list[Rank] = []
    rejected: dict[str, str] = {}
    for candidate in candidates:
        found, reason = rank(candidate, request, policy)
        if found is None:
            rejected[candidate.node] = reason
        else:
            fitting.append(found)
    fitting.sort()
    ranked = tuple(Place(each.node, each.pool_id) for each in fitting)
    return Placement(ranked, rejected, _alike(fitting, policy))


def rank(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> tuple[Rank | None, str]:
    """How good this node is for the request, or None and why it cannot take it."""
    if reason := why_not(candidate, request, policy):
        return None, reason
    pool, reason = pick_pool(candidate, request, policy)
    return (None, reason) if pool is None else (_rank(candidate, pool, request, policy), "")


def choose(placement: Placement, request: PlacementRequest, *, spread: float = 0.0) -> Place:
    """The place to take; `spread` in [0, 1) picks among those that are as good as the best.

    Raises NodeUnfit (the node asked for by name cannot take it), NoNodeFits (none can; one violation a node).
    """
    if placement.ranked:
        return placement.ranked[int(spread * placement.alike)]
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


def _rank(candidate: Candidate, pool: CandidatePool, request: PlacementRequest, policy: PlacementPolicy) -> Rank:
    usable = max(1, usable_memory_mib(candidate, policy))
    free_share = (usable - candidate.allocation.memory_mib) / usable
    missed = sum(1 for key, value in request.preferred_labels.items() if candidate.labels.get(key) != value)
    return Rank(
        regret=regret(request.companions, candidate.node),
        labels_missed=missed,
        less_wanted_pool=less_wanted(pool, request),
        share=-free_share if policy.ranking is Ranking.SPREAD else free_share,
        node=candidate.node,
        pool_id=pool.pool_id,
    )


def _alike(fitting: list[Rank], policy: PlacementPolicy) -> int:
    """Among how many of the first to choose. To pack, all want the fullest, and who comes too late looks again."""
    if not fitting or policy.ranking is Ranking.PACK:
        return min(1, len(fitting))
    best = fitting[0]
    equals = [each for each in fitting if each.wishes == best.wishes]
    about_as_free = sum(1 for each in equals if each.share <= best.share + ALIKE)
    return min(len(equals), max(about_as_free, LEAST_CHOICE))
