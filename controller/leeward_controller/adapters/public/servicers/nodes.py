"""`leeward.v1.NodeService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator
from contextlib import aclosing

from leeward.rpc.handlers import Context
from leeward.v1 import node_pb2
from leeward.v1 import node_service_pb2 as pb
from leeward_controller.adapters.public.convert import node as convert
from leeward_controller.adapters.public.convert.values import requester_of
from leeward_controller.services.instances import Target
from leeward_controller.services.nodes import NodeService
from leeward_controller.services.paging import PageRequest


class NodeServicer:
    """Nodes over gRPC."""

    def __init__(self, nodes: NodeService) -> None:
        self._nodes = nodes

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
        return convert.node_to_wire(await self._nodes.uncordon(target, request_id=request.request_id))

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
        return convert.evacuation_to_wire(begun, refused)
