"""The part of `AgentService` that is about images, disks and pools: messages to values and back, nothing else."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from leeward.agent import convert
from leeward.agent.client import SEND_BYTES
from leeward.agent.v1 import agent_pb2 as pb
from leeward.agent.v1 import agent_pb2_grpc
from leeward.errors import InvalidArgument
from leeward_agent.core import Agent

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class DiskServicer(agent_pb2_grpc.AgentServiceServicer):
    """Images, disks and pools. Errors go through to the server's interceptor."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def StoreImage(
        self, request_iterator: AsyncIterator[pb.StoreImageRequest], context: _Context
    ) -> pb.StoreImageResponse:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument.field("header", "must be the first message")
        image = await self._agent.store_image(
            pool_id=first.header.pool_id,
            digest=first.header.digest,
            format=convert.disk_format_from_wire(first.header.format),
            size_bytes=first.header.size_bytes,
            chunks=_image_chunks(request_iterator, context),
        )
        return pb.StoreImageResponse(image=convert.image_to_wire(image))

    async def ReadImage(
        self, request: pb.ReadImageRequest, context: _Context
    ) -> AsyncGenerator[pb.ReadImageResponse, None]:
        async for chunk in self._agent.read_image(
            pool_id=request.pool_id, digest=request.digest, offset=request.offset
        ):
            yield pb.ReadImageResponse(chunk=chunk)

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: _Context) -> pb.DeleteImageResponse:
        await self._agent.delete_image(pool_id=request.pool_id, digest=request.digest)
        return pb.DeleteImageResponse()

    async def FetchImage(self, request: pb.FetchImageRequest, context: _Context) -> pb.FetchImageResponse:
        image = await self._agent.fetch_image(
            pool_id=request.pool_id,
            digest=request.digest,
            format=convert.disk_format_from_wire(request.format),
            size_bytes=request.size_bytes,
            source=convert.source_of(request),
        )
        return pb.FetchImageResponse(image=convert.image_to_wire(image))

    async def CreateDisk(self, request: pb.CreateDiskRequest, context: _Context) -> pb.CreateDiskResponse:
        await self._agent.create_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.CreateDiskResponse()

    async def DeleteDisk(self, request: pb.DeleteDiskRequest, context: _Context) -> pb.DeleteDiskResponse:
        await self._agent.delete_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.DeleteDiskResponse()

    async def DropRescueDisk(self, request: pb.DropRescueDiskRequest, context: _Context) -> pb.DropRescueDiskResponse:
        await self._agent.drop_rescue_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.DropRescueDiskResponse()

    async def ReplaceDisk(self, request: pb.ReplaceDiskRequest, context: _Context) -> pb.ReplaceDiskResponse:
        await self._agent.replace_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.ReplaceDiskResponse()

    async def ResizeDisk(self, request: pb.ResizeDiskRequest, context: _Context) -> pb.ResizeDiskResponse:
        await self._agent.resize_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.ResizeDiskResponse()

    async def ConfirmDisk(self, request: pb.ConfirmDiskRequest, context: _Context) -> pb.ConfirmDiskResponse:
        await self._agent.confirm_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.ConfirmDiskResponse()

    async def RevertDisk(self, request: pb.RevertDiskRequest, context: _Context) -> pb.RevertDiskResponse:
        await self._agent.revert_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.RevertDiskResponse()

    async def PullDisk(self, request: pb.PullDiskRequest, context: _Context) -> pb.PullDiskResponse:
        await self._agent.pull_disk(
            convert.caller_of(request), spec=convert.spec_of(request), source=convert.source_of(request)
        )
        return pb.PullDiskResponse()

    async def ReadDisk(
        self, request: pb.ReadDiskRequest, context: _Context
    ) -> AsyncGenerator[pb.ReadDiskResponse, None]:
        chunks = self._agent.read_disk(
            pool_id=request.pool_id, uid=request.uid, file=request.file, offset=request.offset
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield pb.ReadDiskResponse(chunk=chunk)

    async def SnapshotDisk(self, request: pb.SnapshotDiskRequest, context: _Context) -> pb.SnapshotDiskResponse:
        snapshot = await self._agent.snapshot_disk(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.SnapshotDiskResponse(snapshot=convert.snapshot_to_wire(snapshot))

    async def TakeInventory(self, request: pb.TakeInventoryRequest, context: _Context) -> pb.TakeInventoryResponse:
        return pb.TakeInventoryResponse(inventory=convert.inventory_to_wire(await self._agent.take_inventory()))


async def _image_chunks(
    requests: AsyncIterator[pb.StoreImageRequest], context: _Context
) -> AsyncGenerator[bytes, None]:
    """The bytes, asked for when they are first wanted: a client is not made to send an image that is there already."""
    await context.send_initial_metadata((SEND_BYTES,))
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgument.field("chunk", "must be all that follows the header")
        yield request.chunk
