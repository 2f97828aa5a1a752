"""`leeward.v1.InstanceService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from google.longrunning.operations_pb2 import Operation

from leeward.rpc.handlers import Context
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.public.convert import instance as convert
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of, seconds
from leeward_controller.services.history import HistoryService
from leeward_controller.services.instances import InstanceService, Target
from leeward_controller.services.paging import PageRequest


class _Request(Protocol):
    """What every request has that changes one instance."""

    name: str
    etag: str
    validate_only: bool


def _target(request: _Request) -> Target:
    return Target(request.name, request.etag, request.validate_only)


class InstanceServicer:
    """Instances over gRPC."""

    def __init__(self, instances: InstanceService, history: HistoryService) -> None:
        self._instances = instances
        self._history = history

    async def CreateInstance(self, request: pb.CreateInstanceRequest, context: Context) -> Operation:
        shown = await self._instances.create(convert.new_instance(request), requester_of(request))
        return operation_to_wire(shown)

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Context) -> instance_pb2.Instance:
        return convert.instance_to_wire(await self._instances.get(request.name))

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Context) -> pb.ListInstancesResponse:
        page = PageRequest(request.page_size, request.page_token, request.filter)
        listing = await self._instances.list(request.parent, page)
        return pb.ListInstancesResponse(
            instances=[convert.instance_to_wire(item) for item in listing.items],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def UpdateInstance(self, request: pb.UpdateInstanceRequest, context: Context) -> instance_pb2.Instance:
        labels, restart = convert.changes_of(request)
        target = Target(request.instance.name, request.instance.etag, request.validate_only)
        stored = await self._instances.update(
            target, labels=labels, restart_on_failure=restart, request_id=request.request_id
        )
        return convert.instance_to_wire(stored)

    async def DeleteInstance(self, request: pb.DeleteInstanceRequest, context: Context) -> Operation:
        return operation_to_wire(await self._instances.delete(_target(request), requester_of(request)))

    async def WatchInstances(
        self, request: pb.WatchInstancesRequest, context: Context
    ) -> AsyncGenerator[pb.WatchInstancesResponse, None]:
        async with aclosing(self._instances.watch(request.parent, request.revision)) as events:
            async for event in events:
                yield convert.watch_response(event)

    async def StartInstance(self, request: pb.StartInstanceRequest, context: Context) -> Operation:
        return operation_to_wire(await self._instances.start(_target(request), requester_of(request)))

    async def StopInstance(self, request: pb.StopInstanceRequest, context: Context) -> Operation:
        grace_s = seconds(request, "grace_period")
        shown = await self._instances.stop(_target(request), requester_of(request), grace_period_s=grace_s)
        return operation_to_wire(shown)

    async def RebootInstance(self, request: pb.RebootInstanceRequest, context: Context) -> Operation:
        shown = await self._instances.reboot(
            _target(request),
            requester_of(request),
            mode=convert.reboot_mode(request),
            timeout_s=seconds(request, "timeout"),
        )
        return operation_to_wire(shown)

    async def LiveMigrateInstance(self, request: pb.LiveMigrateInstanceRequest, context: Context) -> Operation:
        shown = await self._instances.live_migrate(
            _target(request),
            requester_of(request),
            node=request.node,
            bandwidth_mib_s=request.max_bandwidth_mib_per_second,
            max_downtime_s=seconds(request, "max_downtime"),
            timeout_s=seconds(request, "timeout"),
        )
        return operation_to_wire(shown)

    async def EvacuateInstance(self, request: pb.EvacuateInstanceRequest, context: Context) -> Operation:
        shown = await self._instances.evacuate(
            _target(request), requester_of(request), node=request.node, allow_rebuild=request.allow_rebuild
        )
        return operation_to_wire(shown)

    async def GetConsoleLog(self, request: pb.GetConsoleLogRequest, context: Context) -> pb.GetConsoleLogResponse:
        chunk = await self._history.console_log(request.name, offset=request.offset, limit_bytes=request.limit_bytes)
        return convert.console_to_wire(chunk)

    async def ListInstanceEvents(
        self, request: pb.ListInstanceEventsRequest, context: Context
    ) -> pb.ListInstanceEventsResponse:
        page = PageRequest(request.page_size, request.page_token)
        return convert.events_to_wire(await self._history.events(request.parent, page))
