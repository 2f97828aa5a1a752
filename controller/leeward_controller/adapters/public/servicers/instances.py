"""`leeward.v1.InstanceService`: instances as records, their locks, consoles and history."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from google.longrunning.operations_pb2 import Operation

from leeward.errors import InvalidArgument
from leeward.identity import Role
from leeward.rpc.handlers import Context
from leeward.rpc.server_auth import current_principal
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.public.convert import instance as convert
from leeward_controller.adapters.public.convert import instance_requests as requests
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of
from leeward_controller.adapters.public.servicers.instance_images import ImageMethods
from leeward_controller.adapters.public.servicers.instance_moves import MoveMethods
from leeward_controller.adapters.public.servicers.instance_power import PowerMethods
from leeward_controller.adapters.public.servicers.targets import target_of
from leeward_controller.services.everything import InstanceServices
from leeward_controller.services.instances import Target
from leeward_controller.services.paging import PageRequest


class InstanceServicer(PowerMethods, MoveMethods, ImageMethods):
    """Instances over gRPC."""

    def __init__(self, services: InstanceServices) -> None:
        PowerMethods.__init__(self, services.power)
        MoveMethods.__init__(self, services.moves)
        ImageMethods.__init__(self, services.images)
        self._records = services.records
        self._locking = services.locking
        self._consoles = services.consoles
        self._history = services.history

    async def CreateInstance(self, request: pb.CreateInstanceRequest, context: Context) -> Operation:
        shown = await self._records.create(requests.new_instance(request), requester_of(request))
        return operation_to_wire(shown)

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Context) -> instance_pb2.Instance:
        return convert.instance_to_wire(await self._records.get(request.name))

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Context) -> pb.ListInstancesResponse:
        page = PageRequest(request.page_size, request.page_token, request.filter)
        listing = await self._records.list(request.parent, page)
        return pb.ListInstancesResponse(
            instances=[convert.instance_to_wire(item) for item in listing.items],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def UpdateInstance(self, request: pb.UpdateInstanceRequest, context: Context) -> instance_pb2.Instance:
        target = Target(request.instance.name, request.instance.etag, request.validate_only)
        stored = await self._records.update(target, requests.changes_of(request), requester_of(request))
        return convert.instance_to_wire(stored)

    async def WatchInstances(
        self, request: pb.WatchInstancesRequest, context: Context
    ) -> AsyncGenerator[pb.WatchInstancesResponse, None]:
        async with aclosing(self._records.watch(request.parent, request.revision)) as events:
            async for event in events:
                yield convert.watch_response(event)

    async def LockInstance(self, request: pb.LockInstanceRequest, context: Context) -> instance_pb2.Instance:
        stored = await self._locking.lock(target_of(request), requester_of(request), reason=request.reason)
        return convert.instance_to_wire(stored)

    async def UnlockInstance(self, request: pb.UnlockInstanceRequest, context: Context) -> instance_pb2.Instance:
        return convert.instance_to_wire(await self._locking.unlock(target_of(request), requester_of(request)))

    async def GetConsoleLog(self, request: pb.GetConsoleLogRequest, context: Context) -> pb.GetConsoleLogResponse:
        chunk = await self._consoles.log(request.name, offset=request.offset, limit_bytes=request.limit_bytes)
        return convert.console_to_wire(chunk)

    async def AttachConsole(
        self, request_iterator: AsyncIterator[pb.AttachConsoleRequest], context: Context
    ) -> AsyncGenerator[pb.AttachConsoleResponse, None]:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("content") != "name":
            raise InvalidArgument.field("name", "must be in the first message")
        admin = current_principal().role is Role.ADMIN
        attached = self._consoles.attach(first.name, _input(request_iterator), take_over=first.take_over, admin=admin)
        async with aclosing(attached) as output:
            async for piece in output:
                yield pb.AttachConsoleResponse(output=piece)

    async def ListInstanceEvents(
        self, request: pb.ListInstanceEventsRequest, context: Context
    ) -> pb.ListInstanceEventsResponse:
        page = PageRequest(request.page_size, request.page_token)
        return convert.events_to_wire(await self._history.events(request.parent, page))


async def _input(messages: AsyncIterator[pb.AttachConsoleRequest]) -> AsyncGenerator[bytes, None]:
    """What is typed. Raises InvalidArgument for anything else."""
    async for message in messages:
        if message.WhichOneof("content") != "input":
            raise InvalidArgument.field("input", "every message after the first must be input")
        yield message.input
