"""Which node each of many instances goes to, when they all look for one in the same instant. Pure.

One after another is placed beside those before it, on one of the best nodes on which the fewest are being started. No
node is given more starts at a time than the limit: who finds only such nodes waits, rather than go where the scheduler
would like it less. Instances that ask for the same share what was found out about the nodes, since a node changes only
by what is placed on it.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

from leeward_controller.domain.node import Reservation
from leeward_controller.scheduler.model import Candidate, PlacementPolicy, PlacementRequest, Ranking
from leeward_controller.scheduler.placement import ALIKE, LEAST_CHOICE, Rank, rank


@dataclass(frozen=True, slots=True)
class Spot:
    """A node to be started on; `node` is empty when there is none: `busy` tells that there will be one soon."""

    node: str = ""
    busy: bool = False


@dataclass(slots=True)
class _Known:
    """The nodes that requests of one kind fit on, as of the first so many placements."""

    fitting: dict[str, Rank]
    placements: int


class Spread:
    """The nodes as they fill up. `starting` are the starts under way, by node."""

    def __init__(
        self,
        candidates: Iterable[Candidate],
        *,
        policy: PlacementPolicy,
        starting: Mapping[str, int],
        limit: int,
    ) -> None:
        self._candidates = {each.node: each for each in candidates}
        self._policy = policy
        self._starting = Counter(starting)
        self._limit = limit
        self._known: dict[Hashable, _Known] = {}
        self._placed: list[str] = []  # The node of each placement, in order.

    def place(self, request: PlacementRequest, instance: str) -> Spot:
        """Find a node, and take what the instance needs of it."""
        fitting = self._fitting(request)
        if not fitting:
            return Spot()
        best = min(fitting).wishes
        chosen = self._choose([each for each in fitting if each.wishes == best])
        if chosen is None:
            return Spot(busy=True)
        size, candidate = request.resources, self._candidates[chosen.node]
        taken = Reservation(
            request.instance_uid, instance, size.vcpus, size.memory_mib, request.disk_gib, chosen.pool_id
        )
        self._candidates[chosen.node] = replace(candidate, allocation=candidate.allocation.with_reservation(taken))
        self._starting[chosen.node] += 1
        self._placed.append(chosen.node)
        return Spot(chosen.node)

    def _choose(self, equals: list[Rank]) -> Rank | None:
        idle = [each for each in equals if self._starting[each.node] < self._limit]
        if not idle:
            return None
        if self._policy.ranking is Ranking.PACK:
            return min(idle)
        few = heapq.nsmallest(LEAST_CHOICE, idle)
        alike = [each for each in idle if each.share <= max(few[0].share + ALIKE, few[-1].share)]
        return min(alike, key=lambda each: (self._starting[each.node], each.share, each.node))

    def _fitting(self, request: PlacementRequest) -> Collection[Rank]:
        key = None if self._has_a_place(request) else _key(request)
        known = None if key is None else self._known.get(key)
        if known is None:
            known = _Known({}, len(self._placed))
            self._rank(known, request, self._candidates)
            if key is not None:
                self._known[key] = known
        else:
            self._rank(known, request, self._placed[known.placements :])
            known.placements = len(self._placed)
        return known.fitting.values()

    def _rank(self, known: _Known, request: PlacementRequest, nodes: Iterable[str]) -> None:
        for node in nodes:
            ranked = rank(self._candidates[node], request, self._policy)[0]
            if ranked is not None:
                known.fitting[node] = ranked
            else:
                known.fitting.pop(node, None)

    def _has_a_place(self, request: PlacementRequest) -> bool:
        """Whether some node that it may go to holds a place for it already, so that this node is another to it."""
        excluded = {node for node, _ in request.excluded}
        holders = (node for node, each in self._candidates.items() if each.allocation.holds(request.instance_uid))
        return any(node not in excluded for node in holders)


def _key(request: PlacementRequest) -> Hashable | None:
    """What two requests have in common that fit on the same nodes; None for one that shares with nobody."""
    if request.companions is not None or request.source_cpu is not None:
        return None
    return (
        request.resources,
        request.pool_id,
        request.node,
        request.excluded,
        request.data_disks_gib,
        request.storage,
        request.prefers_local,
        request.home_node,
        request.home_pool_id,
        request.cpu_model,
        frozenset(request.required_labels.items()),
        frozenset(request.preferred_labels.items()),
    )
