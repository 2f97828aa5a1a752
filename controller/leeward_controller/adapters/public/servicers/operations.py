"""`google.longrunning.Operations` and `leeward.v1.OperationService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from leeward.identity import Role
from leeward.rpc.handlers import Context
from leeward.rpc.server_auth import current_principal
from leeward.v1 import operation_service_pb2 as pb
from leeward_controller.adapters.public.convert.operation import operation_to_wire, watch_response
from leeward_controller.adapters.public.convert.values import requester_of, seconds
from leeward_controller.services.operations import LONGEST_WAIT_S, OperationService
from leeward_controller.services.paging import PageRequest


class LongRunningServicer:
    """Google's own service for operations."""

    def __init__(self, operations: OperationService) -> None:
        self._operations = operations

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        page = PageRequest(request.page_size, request.page_token, request.filter)
        shown, listing = await self._operations.list(request.name, page)
        return operations_pb2.ListOperationsResponse(
            operations=[operation_to_wire(each) for each in shown], next_page_token=listing.next_page_token
        )

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        return operation_to_wire(await self._operations.get(request.name))

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        timeout_s = seconds(request, "timeout")
        wanted_s = LONGEST_WAIT_S if timeout_s is None else timeout_s
        return operation_to_wire(await self._operations.wait(request.name, timeout_s=wanted_s))

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Context) -> Empty:
        await self._operations.cancel(request.name, requester_of(request))
        return Empty()

    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Context) -> Empty:
        await self._operations.delete(request.name)
        return Empty()


class OperationServicer:
    """What Google's service leaves out."""

    def __init__(self, operations: OperationService) -> None:
        self._operations = operations

    async def WatchOperation(
        self, request: pb.WatchOperationRequest, context: Context
    ) -> AsyncGenerator[pb.WatchOperationResponse, None]:
        from_peer = current_principal().role is Role.CONTROLLER
        async with aclosing(self._operations.watch(request.name, from_peer=from_peer)) as updates:
            async for shown in updates:
                yield watch_response(shown)
