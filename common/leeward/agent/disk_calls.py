"""The part of AgentApi that is about images, disks and pools, over gRPC."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc

from leeward.agent import convert
from leeward.agent.calls import MIB, AgentCalls
from leeward.agent.types import Caller, DiskFormat, GuestSpec, ImageFile, Inventory, PoolSource, SnapshotFile
from leeward.agent.v1 import agent_pb2 as pb

SEND_BYTES = ("leeward-send-bytes", "1")
"""In the initial metadata of StoreImage: the agent has accepted the header, and wants the image's bytes."""


class DiskCalls(AgentCalls):
    """Images, disks and pools."""

    async def store_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        header = pb.StoreImageHeader(
            pool_id=pool_id, digest=digest, format=convert.disk_format_to_wire(format), size_bytes=size_bytes
        )
        call = self._stub.StoreImage(timeout=self._deadlines.moving(size_bytes / MIB))
        try:
            async with self._stream_errors(call, acts=True):
                await call.write(pb.StoreImageRequest(header=header))
                # Before that word the agent may answer that the image is there already, or refuse the header.
                if SEND_BYTES in tuple(await call.initial_metadata()):
                    await _send_image(call, chunks)
                answer = await call
        finally:
            # Where the source of the bytes failed, the agent must not wait for the rest; else this does nothing.
            call.cancel()
        return convert.image_from_wire(answer.image)

    async def read_image(self, *, pool_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        request = pb.ReadImageRequest(pool_id=pool_id, digest=digest, offset=offset)
        seconds = self._deadlines.longest_image_s
        async with aclosing(
            self._stream(lambda: self._stub.ReadImage(request, timeout=seconds), acts=False)
        ) as answers:
            async for answer in answers:
                yield answer.chunk

    async def delete_image(self, *, pool_id: str, digest: str) -> None:
        request = pb.DeleteImageRequest(pool_id=pool_id, digest=digest)
        await self._act(lambda t: self._stub.DeleteImage(request, timeout=t))

    async def fetch_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, source: PoolSource
    ) -> ImageFile:
        request = pb.FetchImageRequest(
            pool_id=pool_id,
            digest=digest,
            format=convert.disk_format_to_wire(format),
            size_bytes=size_bytes,
            source=convert.source_to_wire(source),
        )
        seconds = self._deadlines.moving(size_bytes / MIB)
        answer = await self._act(lambda t: self._stub.FetchImage(request, timeout=t), within_s=seconds)
        return convert.image_from_wire(answer.image)

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.CreateDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.CreateDisk(request, timeout=t))

    async def drop_rescue_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.DropRescueDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.DropRescueDisk(request, timeout=t))

    async def replace_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.ReplaceDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.ReplaceDisk(request, timeout=t))

    async def resize_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.ResizeDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        seconds = self._deadlines.moving_gib(spec.disk_gib)
        await self._act(lambda t: self._stub.ResizeDisk(request, timeout=t), within_s=seconds)

    async def confirm_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.ConfirmDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.ConfirmDisk(request, timeout=t))

    async def revert_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.RevertDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.RevertDisk(request, timeout=t))

    async def pull_disk(self, caller: Caller, *, spec: GuestSpec, source: PoolSource) -> None:
        request = pb.PullDiskRequest(
            caller=convert.caller_to_wire(caller),
            spec=convert.spec_to_wire(spec),
            source=convert.source_to_wire(source),
        )
        seconds = self._deadlines.moving_gib(spec.disk_gib + sum(spec.data_disks_gib) + spec.memory_mib / 1024)
        await self._act(lambda t: self._stub.PullDisk(request, timeout=t), within_s=seconds)

    async def read_disk(self, *, pool_id: str, uid: str, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        request = pb.ReadDiskRequest(pool_id=pool_id, uid=uid, file=file, offset=offset)
        seconds = self._deadlines.longest_image_s
        async with aclosing(self._stream(lambda: self._stub.ReadDisk(request, timeout=seconds), acts=False)) as answers:
            async for answer in answers:
                yield answer.chunk

    async def snapshot_disk(self, caller: Caller, *, spec: GuestSpec) -> SnapshotFile:
        request = pb.SnapshotDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        # The image may be larger than the disk: it holds the whole of what the disk is based on.
        seconds = self._deadlines.moving_gib(2 * spec.disk_gib)
        answer = await self._act(lambda t: self._stub.SnapshotDisk(request, timeout=t), within_s=seconds)
        return convert.snapshot_from_wire(answer.snapshot)

    async def take_inventory(self) -> Inventory:
        # It reads every folder of the pools: more than the state of a guest takes.
        with self._errors(acts=False):
            answer = await self._stub.TakeInventory(pb.TakeInventoryRequest(), timeout=self._deadlines.act_s)
        return convert.inventory_from_wire(answer.inventory)

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.DeleteDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.DeleteDisk(request, timeout=t))


async def _send_image(
    call: "grpc.aio.StreamUnaryCall[pb.StoreImageRequest, pb.StoreImageResponse]", chunks: AsyncIterator[bytes]
) -> None:
    async for chunk in chunks:
        for start in range(0, len(chunk), MIB):
            await call.write(pb.StoreImageRequest(chunk=chunk[start : start + MIB]))
    await call.done_writing()
