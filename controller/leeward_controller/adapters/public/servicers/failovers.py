"""`leeward.v1.FailoverService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.longrunning import operations_pb2

from leeward.rpc.handlers import Context
from leeward.v1 import failover_pb2
from leeward.v1 import failover_service_pb2 as pb
from leeward_controller.adapters.public.convert.failovers import failover_to_wire
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of
from leeward_controller.services.failovers import FailoverService
from leeward_controller.services.instances import Target
from leeward_controller.services.node_operations import NodeOperations
from leeward_controller.services.paging import PageRequest


class FailoverServicer:
    """Failovers over gRPC."""

    def __init__(self, failovers: FailoverService, operations: NodeOperations) -> None:
        self._failovers = failovers
        self._operations = operations

    async def GetFailover(self, request: pb.GetFailoverRequest, context: Context) -> failover_pb2.Failover:
        return failover_to_wire(await self._failovers.get(request.name))

    async def DrillFailover(self, request: pb.DrillFailoverRequest, context: Context) -> operations_pb2.Operation:
        target = Target(request.node, request.etag, request.validate_only)
        shown = await self._operations.drill(target, requester_of(request), parallelism=request.parallelism)
        return operation_to_wire(shown)

    async def ListFailovers(self, request: pb.ListFailoversRequest, context: Context) -> pb.ListFailoversResponse:
        page = PageRequest(request.page_size, request.page_token, request.filter)
        shown, listing = await self._failovers.list(page)
        return pb.ListFailoversResponse(
            failovers=[failover_to_wire(each) for each in shown],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )
