"""Many instances that are placed in the same instant, from the same picture of the cluster."""

import random
from collections import Counter

from leeward_controller.domain.instance import Resources
from leeward_controller.domain.node import NodeAllocation, NodeCondition, Reservation
from leeward_controller.scheduler.placement import (
    Candidate,
    CandidatePool,
    PlacementPolicy,
    PlacementRequest,
    Ranking,
    choose,
    plan_placement,
)

REQUEST = PlacementRequest("uid", Resources(vcpus=1, memory_mib=512, disk_gib=1), "pool")


def candidate(node: str, *, taken_mib: int = 0) -> Candidate:
    reservations = (Reservation("other", "projects/p/instances/o", 1, taken_mib, 1),) if taken_mib else ()
    return Candidate(
        node=node,
        condition=NodeCondition.READY,
        alive=True,
        cordoned=False,
        vcpus=64,
        memory_mib=65536,
        pools=(CandidatePool("pool"),),
        allocation=NodeAllocation(node, reservations),
    )


def test_a_burst_is_spread_over_all_nodes_that_are_about_as_free() -> None:
    rng = random.Random(1)
    placement = plan_placement([candidate(f"host-{n:02}") for n in range(40)], REQUEST)
    chosen = Counter(choose(placement, REQUEST, spread=rng.uniform(0.0, 0.999)).node for _ in range(400))
    assert len(chosen) == 40
    assert max(chosen.values()) < 30


def test_nodes_that_are_clearly_fuller_are_left_alone_while_three_others_fit() -> None:
    free = [candidate(f"free-{n}") for n in range(4)]
    full = [candidate(f"full-{n}", taken_mib=32768) for n in range(4)]
    placement = plan_placement([*full, *free], REQUEST)
    chosen = {choose(placement, REQUEST, spread=step / 100).node for step in range(100)}
    assert chosen == {each.node for each in free}


def test_to_pack_the_fullest_that_has_room_is_taken_by_everybody() -> None:
    hosts = [candidate("empty"), candidate("full", taken_mib=65000), candidate("fuller", taken_mib=40000)]
    placement = plan_placement(hosts, REQUEST, policy=PlacementPolicy(ranking=Ranking.PACK))
    assert [place.node for place in placement.ranked] == ["fuller", "empty"]
    assert {choose(placement, REQUEST, spread=step / 10).node for step in range(10)} == {"fuller"}
