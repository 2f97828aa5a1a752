"""What would happen if a node died, computed without touching anything."""

from dataclasses import replace
from datetime import UTC, datetime

from leeward.agent.types import DiskFormat
from leeward_controller.domain.instance import Instance, InstanceState, Resources, RestartPriority
from leeward_controller.domain.node import NodeAllocation, NodeCondition
from leeward_controller.failover.plan import FailoverPlan, plan_failover
from leeward_controller.scheduler.placement import Candidate, CandidatePool, PlacementPolicy, PlacementRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEB = Instance(
    name="projects/p/instances/web-1",
    uid="web-1",
    state=InstanceState.ACTIVE,
    flavor="small",
    resources=Resources(vcpus=1, memory_mib=1024, disk_gib=1),
    image="projects/p/images/tiny",
    image_digest="ab" * 32,
    image_format=DiskFormat.RAW,
    pool_id="pool",
    nics=(),
    create_time=NOW,
    update_time=NOW,
    created_by="client:alice",
    node="host-a",
)
HOST = Candidate(
    node="host-a",
    condition=NodeCondition.READY,
    alive=True,
    cordoned=False,
    vcpus=8,
    memory_mib=2048,
    pools=(CandidatePool("pool"),),
    allocation=NodeAllocation("host-a"),
)


def _web(number: int) -> Instance:
    return replace(WEB, name=f"projects/p/instances/web-{number}", uid=f"web-{number}")


def _host(node: str) -> Candidate:
    return replace(HOST, node=node, allocation=NodeAllocation(node))


def _plan(*instances: Instance, hosts: str = "abc") -> FailoverPlan:
    return plan_failover(
        "host-a",
        instances,
        [_host(f"host-{letter}") for letter in hosts],
        request_of=lambda instance: PlacementRequest(instance.uid, instance.resources, instance.pool_id),
        policy=PlacementPolicy(reserved_memory_mib=0),
    )


def test_each_is_placed_beside_those_before_it() -> None:
    plan = _plan(*(_web(number) for number in range(1, 5)))
    assert plan.survivable
    assert sorted(each.node for each in plan.placements) == ["host-b", "host-b", "host-c", "host-c"]
    assert [each.instance[-1] for each in plan.placements] == ["1", "2", "3", "4"]


def test_the_one_too_many_is_named_with_what_each_node_lacks() -> None:
    plan = _plan(*(_web(number) for number in range(1, 6)))
    assert not plan.survivable
    last = plan.placements[-1]
    assert (last.instance, last.node) == ("projects/p/instances/web-5", "")
    assert "nodes/host-b: 0 of 2048 MiB memory are free, 1024 are asked for" in last.reason
    assert "nodes/host-c" in last.reason
    assert "nodes/host-a" not in last.reason


def test_those_of_a_higher_priority_are_placed_first() -> None:
    first = replace(_web(5), restart_priority=RestartPriority.HIGHEST)
    plan = _plan(*(_web(number) for number in range(1, 5)), first)
    assert [each.instance[-1] for each in plan.placements] == ["5", "1", "2", "3", "4"]
    assert plan.placements[0].node
    assert not plan.placements[-1].node


def test_what_failover_leaves_alone_does_not_count_against_the_cluster() -> None:
    left_alone = replace(_web(1), restart_on_failure=False)
    building = replace(_web(2), state=InstanceState.BUILDING)
    plan = _plan(left_alone, building, hosts="a")
    assert plan.survivable
    assert [each.node for each in plan.placements] == ["", ""]
    assert not _plan(_web(1), hosts="a").survivable
