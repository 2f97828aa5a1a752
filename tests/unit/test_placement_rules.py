"""What an instance may ask of its place: labels, a kind of pool, a processor, the company of others."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from leeward.agent.types import CpuReport
from leeward_controller.domain.group import Group, GroupPolicy
from leeward_controller.domain.instance import Resources, Storage
from leeward_controller.domain.node import NodeAllocation, NodeCondition, Reservation
from leeward_controller.scheduler.cpu import baseline
from leeward_controller.scheduler.groups import companions_of
from leeward_controller.scheduler.placement import (
    Candidate,
    CandidatePool,
    Placement,
    PlacementPolicy,
    PlacementRequest,
    plan_placement,
)

SHARED = CandidatePool("nfs", shared=True, capacity_gib=100)
LOCAL = CandidatePool("disk-a", shared=False, capacity_gib=10)
OLD = CpuReport("Haswell", ("aes",), ("Haswell", "Westmere"))
NEW = CpuReport("Icelake-Server", ("aes", "sha"), ("Haswell", "Icelake-Server", "Westmere"))


def host(node: str, *, pools: tuple[CandidatePool, ...] = (SHARED,), held: tuple[Reservation, ...] = ()) -> Candidate:
    return Candidate(
        node=node,
        condition=NodeCondition.READY,
        alive=True,
        cordoned=False,
        vcpus=8,
        memory_mib=8704,
        pools=pools,
        allocation=NodeAllocation(node, held),
    )


REQUEST = PlacementRequest("uid", Resources(vcpus=1, memory_mib=1024, disk_gib=8))


def plan(*hosts: Candidate, request: PlacementRequest, policy: PlacementPolicy | None = None) -> Placement:
    return plan_placement(hosts, request, policy=policy or PlacementPolicy(disk_overcommit=1.0))


def places(placement: Placement) -> list[tuple[str, str]]:
    return [(place.node, place.pool_id) for place in placement.ranked]


def test_labels_that_are_required_decide_and_those_preferred_only_rank() -> None:
    hosts = [
        replace(host("a"), labels={"zone": "west", "disk": "slow"}),
        replace(host("b"), labels={"zone": "west", "disk": "fast"}),
        replace(host("c"), labels={"zone": "east", "disk": "fast"}),
        host("d"),
    ]
    wanted = replace(REQUEST, required_labels={"zone": "west"}, preferred_labels={"disk": "fast"})
    placement = plan(*hosts, request=wanted)
    assert [node for node, _ in places(placement)] == ["b", "a"]
    assert placement.alike == 1, "chance must not decide against a preference"
    assert placement.rejected == {
        "c": "its label zone is east, west is asked for",
        "d": "it has no label zone, zone=west is asked for",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("both", "nfs"), ("local", "disk-b")]),
        ({"storage": Storage.SHARED}, [("both", "nfs")]),
        ({"storage": Storage.LOCAL}, [("both", "disk-a"), ("local", "disk-b")]),
        ({"pool_id": "nfs"}, [("both", "nfs")]),
        # Where it is, its disks stay where they are; anywhere else the same kind of pool comes first.
        (
            {"prefers_local": True, "home_node": "local", "home_pool_id": "disk-b"},
            [("both", "disk-a"), ("local", "disk-b")],
        ),
        ({"prefers_local": True, "home_node": "both", "home_pool_id": "gone"}, [("local", "disk-b")]),
    ],
)
def test_the_pool_is_part_of_the_choice(changes: dict[str, object], expected: list[tuple[str, str]]) -> None:
    hosts = [host("both", pools=(LOCAL, SHARED)), host("local", pools=(replace(LOCAL, pool_id="disk-b"),))]
    request: PlacementRequest = replace(REQUEST, **changes)  # type: ignore[arg-type]
    assert places(plan(*hosts, request=request)) == expected


def test_disks_are_promised_up_to_the_ratio_counting_other_hosts_of_a_shared_pool() -> None:
    other = Reservation("other", "projects/p/instances/o", 1, 512, 5, "disk-a")
    own = Reservation("uid", "projects/p/instances/own", 1, 512, 9, "disk-a")
    local = host("a", pools=(LOCAL,), held=(other,))
    assert plan(local, request=REQUEST).rejected == {"a": "5 of 10 GiB in pool disk-a are free, 8 are asked for"}
    assert places(plan(local, request=REQUEST, policy=PlacementPolicy(disk_overcommit=2.0))) == [("a", "disk-a")]
    assert places(plan(host("a", pools=(LOCAL,), held=(own,)), request=REQUEST)) == [("a", "disk-a")]
    data = replace(REQUEST, data_disks_gib=3)
    assert plan(host("a", pools=(LOCAL,)), request=data).rejected == {
        "a": "10 of 10 GiB in pool disk-a are free, 11 are asked for"
    }
    busy = host("b", pools=(replace(SHARED, taken_elsewhere_gib=95),))
    assert plan(busy, request=REQUEST).rejected == {"b": "5 of 100 GiB in pool nfs are free, 8 are asked for"}


def test_memory_can_be_promised_beyond_what_is_there_when_the_operator_says_so() -> None:
    full = host("a", held=(Reservation("other", "projects/p/instances/o", 1, 8192, 1, "nfs"),))
    assert plan(full, request=REQUEST).rejected == {"a": "0 of 8192 MiB memory are free, 1024 are asked for"}
    assert places(plan(full, request=REQUEST, policy=PlacementPolicy(memory_overcommit=1.5))) == [("a", "nfs")]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cpu_model": "Haswell"}, ""),
        ({"cpu_model": "Icelake-Server"}, "its processor (Haswell) cannot be a Icelake-Server"),
        ({"source_cpu": OLD}, ""),
        ({"source_cpu": CpuReport()}, ""),
        ({"source_cpu": NEW}, "its processor (Haswell) cannot take over from a Icelake-Server"),
        ({"source_cpu": replace(OLD, features=("aes", "hle"))}, "its processor lacks hle, which the guest may use"),
        # A named model moves with the guest, so the host's own processors do not matter.
        ({"source_cpu": NEW, "cpu_model": "Westmere"}, ""),
    ],
)
def test_a_guest_goes_only_where_its_processor_can_be_had(changes: dict[str, object], why: str) -> None:
    request: PlacementRequest = replace(REQUEST, **changes)  # type: ignore[arg-type]
    assert plan(replace(host("a"), cpu=OLD), request=request).rejected == ({"a": why} if why else {})


def test_the_baseline_is_the_best_model_that_all_have() -> None:
    assert baseline([NEW]) == "Icelake-Server"
    assert baseline([OLD, NEW]) == "Haswell"
    assert baseline([OLD, CpuReport("EPYC", (), ("EPYC", "Westmere", "qemu64"))]) == "Westmere"
    assert baseline([OLD, CpuReport()]) == "" == baseline([])


def group(policy: GroupPolicy) -> Group:
    empty = Group("projects/p/groups/g", "g", policy, datetime(2026, 1, 1, tzinfo=UTC))
    return empty.with_member("uid", "projects/p/instances/own").with_member("u1", "projects/p/instances/one", on="a")


@pytest.mark.parametrize(
    ("policy", "fits"),
    [
        (GroupPolicy.AFFINITY, ["a"]),
        (GroupPolicy.ANTI_AFFINITY, ["b", "c"]),
        (GroupPolicy.SOFT_AFFINITY, ["a", "b", "c"]),
        (GroupPolicy.SOFT_ANTI_AFFINITY, ["b", "c", "a"]),
    ],
)
def test_a_group_keeps_its_members_together_or_apart(policy: GroupPolicy, fits: list[str]) -> None:
    companions = companions_of(group(policy), "uid", is_left=lambda _: False)
    # The soft rules are stronger than room: b and c are emptier than a.
    taken = (Reservation("x", "projects/p/instances/x", 1, 2048, 1, "nfs"),)
    hosts = [host("a", held=taken if policy is GroupPolicy.SOFT_AFFINITY else ()), host("b"), host("c")]
    placement = plan(*hosts, request=replace(REQUEST, companions=companions))
    assert [node for node, _ in places(placement)] == fits
    if policy is GroupPolicy.ANTI_AFFINITY:
        assert placement.rejected["a"] == (
            "projects/p/groups/g keeps its members apart, and projects/p/instances/one is on it"
        )


def test_members_that_stay_together_leave_a_node_one_after_the_other() -> None:
    both_on_a = group(GroupPolicy.AFFINITY).with_member("uid", "projects/p/instances/own", on="a")

    def allowed(now: Group) -> set[str]:
        companions = companions_of(now, "uid", is_left=lambda node: node == "a")
        placement = plan(host("b"), host("c"), request=replace(REQUEST, companions=companions))
        return {place.node for place in placement.ranked}

    assert allowed(both_on_a) == {"b", "c"}, "the one that goes first goes anywhere"
    moved = both_on_a.with_member("u1", "projects/p/instances/one", on="c").without_place("u1", "a")
    assert allowed(moved) == {"c"}, "and the others follow it"
    newcomer = group(GroupPolicy.AFFINITY)
    assert allowed(newcomer) == set(), "one that was never there waits for the others"
