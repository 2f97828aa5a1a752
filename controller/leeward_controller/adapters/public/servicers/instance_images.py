"""`leeward.v1.InstanceService`: what makes images of one, and what gives it other disks."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.longrunning.operations_pb2 import Operation

from leeward.rpc.handlers import Context
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of, seconds
from leeward_controller.adapters.public.servicers.targets import target_of
from leeward_controller.services.instance_images import InstanceImages


class ImageMethods:
    """Part of the service."""

    def __init__(self, images: InstanceImages) -> None:
        self._images = images

    async def SnapshotInstance(self, request: pb.SnapshotInstanceRequest, context: Context) -> Operation:
        shown = await self._images.snapshot(
            target_of(request),
            requester_of(request),
            image_id=request.image_id,
            properties=dict(request.properties),
        )
        return operation_to_wire(shown)

    async def ShelveInstance(self, request: pb.ShelveInstanceRequest, context: Context) -> Operation:
        delay_s = seconds(request, "offload_delay")
        shown = await self._images.shelve(target_of(request), requester_of(request), offload_delay_s=delay_s)
        return operation_to_wire(shown)

    async def UnshelveInstance(self, request: pb.UnshelveInstanceRequest, context: Context) -> Operation:
        shown = await self._images.unshelve(target_of(request), requester_of(request), node=request.node)
        return operation_to_wire(shown)

    async def RescueInstance(self, request: pb.RescueInstanceRequest, context: Context) -> Operation:
        shown = await self._images.rescue(target_of(request), requester_of(request), image=request.image)
        return operation_to_wire(shown)

    async def UnrescueInstance(self, request: pb.UnrescueInstanceRequest, context: Context) -> Operation:
        return operation_to_wire(await self._images.unrescue(target_of(request), requester_of(request)))

    async def RebuildInstance(self, request: pb.RebuildInstanceRequest, context: Context) -> Operation:
        shown = await self._images.rebuild(target_of(request), requester_of(request), image=request.image)
        return operation_to_wire(shown)
