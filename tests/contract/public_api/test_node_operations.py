"""Draining, fencing and removing nodes, and planning for their death, as an operator's client sees it."""

import asyncio

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from tests.contract.public_api.calls import launch, launched, refused
from tests.support.public import WAIT_S, Face, PublicLab

from leeward.errors import FailedPrecondition, InvalidArgument, NotFound, OperationRunning
from leeward.v1 import instance_service_pb2 as instance_pb
from leeward.v1 import node_pb2, operation_pb2, operation_service_pb2
from leeward.v1 import node_service_pb2 as pb

HOST_A, HOST_B = "nodes/host-a", "nodes/host-b"
MOVING = operation_pb2.MOVE_PHASE_MOVING


def _metadata(operation: operations_pb2.Operation) -> operation_pb2.OperationMetadata:
    metadata = operation_pb2.OperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


async def _watched(face: Face, name: str) -> list[operation_service_pb2.WatchOperationResponse]:
    async with asyncio.timeout(WAIT_S):
        request = operation_service_pb2.WatchOperationRequest(name=name)
        return [moment async for moment in face.watch.WatchOperation(request)]


async def _node(face: Face, name: str) -> node_pb2.Node:
    node: node_pb2.Node = await face.nodes.GetNode(pb.GetNodeRequest(name=name))
    return node


async def test_a_drain_is_followed_through_any_replica_and_taken_back_on_request(lab: PublicLab, stocked: Face) -> None:
    other = await lab.add_controller()
    names = [(await launched(stocked, f"vm-{number}", node=HOST_A)).name for number in (1, 2)]
    request = pb.DrainNodeRequest(name=HOST_A, parallelism=1, reason="new fans", request_id="drain-1")
    begun = await stocked.nodes.DrainNode(request)
    assert (await _node(stocked, HOST_A)).condition == node_pb2.Node.CONDITION_DRAINING
    assert (await stocked.nodes.DrainNode(request)).name == begun.name
    moments = await _watched(other, begun.name)

    seen = [move for moment in moments for move in moment.metadata.drain.moves]
    assert {move.instance for move in seen} == set(names)
    assert any(move.phase == MOVING and 0 < move.percent < 100 for move in seen)
    at_once = [sum(move.phase == MOVING for move in moment.metadata.drain.moves) for moment in moments]
    assert max(at_once) == 1
    percents = [moment.metadata.percent for moment in moments]
    assert percents == sorted(percents)
    last = moments[-1]
    assert (last.metadata.node, last.metadata.percent, last.metadata.drain.moved) == (HOST_A, 100, 2)
    drained = node_pb2.Node()
    assert last.operation.response.Unpack(drained), last.operation
    assert drained.condition == node_pb2.Node.CONDITION_MAINTENANCE
    assert (drained.cordoned, drained.cordon_reason, drained.instance_count) == (True, "new fans", 0)
    assert sorted(drained.drained_instances) == names

    parts = await stocked.operations.ListOperations(
        operations_pb2.ListOperationsRequest(filter=f"parent_operation = {begun.name}")
    )
    assert {_metadata(part).instance for part in parts.operations} == set(names)
    assert {part.name for part in parts.operations} == {move.operation for move in last.metadata.drain.moves}

    uncordoned = await stocked.nodes.UncordonNode(pb.UncordonNodeRequest(name=HOST_A, bring_back=True))
    assert uncordoned.condition == node_pb2.Node.CONDITION_READY
    back = await _watched(other, uncordoned.current_operation)
    assert back[-1].metadata.type == operation_pb2.OPERATION_TYPE_BRING_BACK
    for name in names:
        instance = await stocked.instances.GetInstance(instance_pb.GetInstanceRequest(name=name))
        assert instance.node == HOST_A
    assert list((await _node(stocked, HOST_A)).drained_instances) == []


async def test_one_operation_at_a_time_runs_on_a_node_and_a_drain_can_be_cancelled(stocked: Face) -> None:
    await launched(stocked, node=HOST_A)
    request = pb.DrainNodeRequest(name=HOST_A)
    begun = await stocked.nodes.DrainNode(request)
    running = await refused(OperationRunning, stocked.nodes.DrainNode(request))
    assert running.metadata["operation"] == begun.name
    await refused(OperationRunning, stocked.nodes.UncordonNode(pb.UncordonNodeRequest(name=HOST_A)))
    await stocked.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=begun.name))
    ended = await stocked.ended(begun)
    assert _metadata(ended).phase == operation_pb2.OPERATION_PHASE_CANCELLED
    node = await _node(stocked, HOST_A)
    assert (node.condition, node.cordoned, node.current_operation) == (node_pb2.Node.CONDITION_READY, False, "")


async def test_what_is_wrong_with_a_drain_is_told_before_anything_happens(stocked: Face) -> None:
    error = await refused(
        InvalidArgument, stocked.nodes.DrainNode(pb.DrainNodeRequest(name="nodes/", parallelism=65, retries=11))
    )
    assert {each.field for each in error.fields} == {"name", "parallelism", "retries"}
    await refused(NotFound, stocked.nodes.DrainNode(pb.DrainNodeRequest(name="nodes/nowhere")))
    checked = await stocked.nodes.DrainNode(pb.DrainNodeRequest(name=HOST_A, validate_only=True))
    assert checked.name == ""
    assert not (await _node(stocked, HOST_A)).cordoned
    labelled = launch(labels={"leeward.dev/drain": "sometimes"})
    error = await refused(InvalidArgument, stocked.instances.CreateInstance(labelled))
    assert [each.field for each in error.fields] == ["instance.labels[leeward.dev/drain]"]
    assert "live, cold, stay" in error.message


async def test_a_node_is_fenced_and_removed_only_when_it_is_dead(lab: PublicLab, stocked: Face) -> None:
    made = await launched(stocked, node=HOST_A)
    fence, remove = pb.FenceNodeRequest(name=HOST_A), pb.RemoveNodeRequest(name=HOST_A)
    error = await refused(FailedPrecondition, stocked.nodes.FenceNode(fence))
    assert error.specific_reason == "NODE_ALIVE"
    error = await refused(FailedPrecondition, stocked.nodes.FenceNode(pb.FenceNodeRequest(name=HOST_A, force=True)))
    assert error.specific_reason == "NO_FENCE_DEVICE"
    error = await refused(FailedPrecondition, stocked.nodes.RemoveNode(remove))
    assert error.specific_reason == "NODE_ALIVE"

    await lab.cluster.nodes["host-a"].power_off()
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    assert await core.view.wait_for(lambda: "host-a" not in core.view.leases, timeout_s=WAIT_S)
    error = await refused(FailedPrecondition, stocked.nodes.RemoveNode(remove))
    assert error.specific_reason == "NOT_EMPTY"
    assert [each.subject for each in error.violations] == [made.name]
    fenced = await stocked.ended(await stocked.nodes.FenceNode(fence))
    proof = node_pb2.FenceProof()
    assert fenced.response.Unpack(proof), fenced
    assert (proof.node, proof.kind) == (HOST_A, node_pb2.FENCE_PROOF_KIND_SILENCE)

    async with asyncio.timeout(WAIT_S):
        while (await _node(stocked, HOST_A)).condition != node_pb2.Node.CONDITION_EVACUATED:
            await core.view.wait_for(lambda: False, timeout_s=0.1)
    removed = await stocked.ended(await stocked.nodes.RemoveNode(remove))
    assert removed.response.Is(Empty.DESCRIPTOR), removed
    await refused(NotFound, stocked.nodes.GetNode(pb.GetNodeRequest(name=HOST_A)))
    assert [node.name for node in (await stocked.nodes.ListNodes(pb.ListNodesRequest())).nodes] == [HOST_B]


async def test_the_plan_tells_where_each_instance_would_go(stocked: Face) -> None:
    made = await launched(stocked, node=HOST_A)
    plan = await stocked.nodes.PlanFailover(pb.PlanFailoverRequest(name=HOST_A))
    assert plan.survivable
    assert [(each.instance, each.node) for each in plan.placements] == [(made.name, HOST_B)]
    await stocked.nodes.CordonNode(pb.CordonNodeRequest(name=HOST_B))
    plan = await _until_unsurvivable(stocked)
    assert "nodes/host-b: it is cordoned" in plan.placements[0].reason
    await refused(NotFound, stocked.nodes.PlanFailover(pb.PlanFailoverRequest(name="nodes/nowhere")))


async def _until_unsurvivable(face: Face) -> pb.PlanFailoverResponse:
    """The plan is as the replica sees the cluster, which lags what was just written."""
    async with asyncio.timeout(WAIT_S):
        while True:
            plan: pb.PlanFailoverResponse = await face.nodes.PlanFailover(pb.PlanFailoverRequest(name=HOST_A))
            if not plan.survivable:
                return plan
