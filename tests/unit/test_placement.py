"""Where instances go, and the words in which nodes are turned down."""

from dataclasses import replace

import pytest

from leeward.errors import NodeUnfit, NoNodeFits
from leeward_controller.domain.instance import Resources
from leeward_controller.domain.node import NodeAllocation, NodeCondition, Reservation
from leeward_controller.scheduler.placement import (
    Candidate,
    CandidatePool,
    Place,
    PlacementRequest,
    choose,
    plan_placement,
)

FREE = Candidate(
    node="host-a",
    condition=NodeCondition.READY,
    alive=True,
    cordoned=False,
    vcpus=4,
    memory_mib=4608,
    pools=(CandidatePool("pool"),),
    allocation=NodeAllocation("host-a"),
)
REQUEST = PlacementRequest("uid", Resources(vcpus=2, memory_mib=1024, disk_gib=1), "pool")


def used(node: str, memory_mib: int, vcpus: int = 1) -> NodeAllocation:
    return NodeAllocation(node, (Reservation("other", "projects/p/instances/other", vcpus, memory_mib, 1),))


def nodes_in_order(candidates: list[Candidate], request: PlacementRequest = REQUEST) -> list[str]:
    return [place.node for place in plan_placement(candidates, request).ranked]


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (replace(FREE, alive=False, condition=NodeCondition.SUSPECT), "its heartbeat is lost (SUSPECT)"),
        (replace(FREE, cordoned=True), "it is cordoned"),
        (replace(FREE, draining=True), "its agent is stopping"),
        (replace(FREE, condition=NodeCondition.QUARANTINED), "it is QUARANTINED"),
        (replace(FREE, pools=()), "it has no working pool pool"),
        (replace(FREE, vcpus=1), "it has 1 vCPUs, 2 are asked for"),
        (replace(FREE, allocation=used("host-a", 100, vcpus=15)), "1 of 16 vCPUs are free, 2 are asked for"),
        (replace(FREE, allocation=used("host-a", 3500)), "596 of 4096 MiB memory are free, 1024 are asked for"),
    ],
)
def test_each_reason_is_told_in_words(candidate: Candidate, why: str) -> None:
    placement = plan_placement([candidate], REQUEST)
    assert placement.rejected == {"host-a": why}
    with pytest.raises(NoNodeFits) as caught:
        choose(placement, REQUEST)
    assert [(v.subject, v.description) for v in caught.value.violations] == [("nodes/host-a", why)]


def test_the_emptier_node_wins_and_names_break_ties() -> None:
    full = replace(FREE, node="host-b", allocation=used("host-b", 2000))
    twin = replace(FREE, node="host-c", allocation=NodeAllocation("host-c"))
    assert nodes_in_order([full, twin, FREE]) == ["host-a", "host-c", "host-b"]


def test_what_an_instance_holds_already_does_not_count_against_it() -> None:
    own = NodeAllocation("host-a", (Reservation("uid", "projects/p/instances/own", 2, 4000, 1),))
    assert plan_placement([replace(FREE, allocation=own)], REQUEST).ranked == (Place("host-a", "pool"),)
    assert nodes_in_order([replace(FREE, allocation=own, cordoned=True)]) == ["host-a"]


def test_a_node_asked_for_by_name_never_becomes_another() -> None:
    wanted = replace(REQUEST, node="host-b")
    placement = plan_placement([FREE, replace(FREE, node="host-b", cordoned=True)], wanted)
    with pytest.raises(NodeUnfit, match="host-b cannot take it: it is cordoned"):
        choose(placement, wanted)
    with pytest.raises(NodeUnfit, match="does not exist"):
        choose(plan_placement([FREE], replace(REQUEST, node="host-x")), replace(REQUEST, node="host-x"))
