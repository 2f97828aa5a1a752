"""`leeward.v1.NodeService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.longrunning import operations_pb2

from leeward.rpc.handlers import Context
from leeward.v1 import node_pb2
from leeward.v1 import node_service_pb2 as pb
from leeward_controller.adapters.public.convert import node as convert
from leeward_controller.adapters.public.convert.node_calls import evacuation_to_wire, on_failure_of, plan_to_wire
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of
from leeward_controller.services.instances import Target
from leeward_controller.services.node_operations import NodeOperations
from leeward_controller.services.nodes import NodeService
from leeward_controller.services.paging import PageRequest


class NodeServicer:
    """Nodes over gRPC."""

    def __init__(self, nodes: NodeService, operations: NodeOperations) -> None:
        self._nodes = nodes
        self._operations = operations

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> node_pb2.Node:
        return convert.node_to_wire(await self._nodes.get(request.name))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        page = PageRequest(request.page_size, request.page_token, request.filter)
        shown, listing = await self._nodes.list(page)
        return pb.ListNodesResponse(
            nodes=[convert.node_to_wire(each) for each in shown],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def WatchNodes(
        self, request: pb.WatchNodesRequest, context: Context
    ) -> AsyncGenerator[pb.WatchNodesResponse, None]:
        async with aclosing(self._nodes.watch(request.revision)) as events:
            async for event in events:
                shown = None if event.record is None else self._nodes.at_hand(event.record)
                yield convert.watch_response(event, shown)

    async def CordonNode(self, request: pb.CordonNodeRequest, context: Context) -> node_pb2.Node:
        target = Target(request.name, request.etag, request.validate_only)
        shown = await self._nodes.cordon(target, reason=request.reason, request_id=request.request_id)
        return convert.node_to_wire(shown)

    async def UncordonNode(self, request: pb.UncordonNodeRequest, context: Context) -> node_pb2.Node:
        target = Target(request.name, request.etag, request.validate_only)
        shown = await self._nodes.uncordon(target, requester_of(request), bring_back=request.bring_back)
        return convert.node_to_wire(shown)

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> operations_pb2.Operation:
        shown = await self._operations.drain(
            Target(request.name, request.etag, request.validate_only),
            requester_of(request),
            parallelism=request.parallelism,
            retries=request.retries if request.HasField("retries") else None,
            on_failure=on_failure_of(request),
            enter_maintenance=request.enter_maintenance if request.HasField("enter_maintenance") else True,
            reason=request.reason,
        )
        return operation_to_wire(shown)

    async def FenceNode(self, request: pb.FenceNodeRequest, context: Context) -> operations_pb2.Operation:
        target = Target(request.name, request.etag, request.validate_only)
        return operation_to_wire(await self._operations.fence(target, requester_of(request), force=request.force))

    async def RemoveNode(self, request: pb.RemoveNodeRequest, context: Context) -> operations_pb2.Operation:
        target = Target(request.name, request.etag, request.validate_only)
        return operation_to_wire(await self._operations.remove(target, requester_of(request)))

    async def PlanFailover(self, request: pb.PlanFailoverRequest, context: Context) -> pb.PlanFailoverResponse:
        return plan_to_wire(*await self._operations.plan_failover(request.name))

    async def AttestNodeFenced(self, request: pb.AttestNodeFencedRequest, context: Context) -> node_pb2.FenceProof:
        proof = await self._nodes.attest_fenced(
            Target(request.name, request.etag, request.validate_only),
            requester_of(request),
            boot_id=request.boot_id,
            evidence=request.evidence,
        )
        return convert.proof_to_wire(proof)

    async def EvacuateNode(self, request: pb.EvacuateNodeRequest, context: Context) -> pb.EvacuateNodeResponse:
        target = Target(request.name, request.etag, request.validate_only)
        begun, refused = await self._nodes.evacuate(target, requester_of(request), target_node=request.target_node)
        return evacuation_to_wire(begun, refused)
