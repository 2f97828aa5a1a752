"""AgentApi over gRPC."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc

from leeward.agent import convert
from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestSpec,
    GuestStatus,
    ImageFile,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    RebootMode,
    SlotObservation,
)
from leeward.agent.v1 import agent_pb2 as pb
from leeward.agent.v1 import agent_pb2_grpc
from leeward.errors import AgentIndefinite, AgentUnavailable, Unavailable
from leeward.identity import agent_server_name
from leeward.rpc.channel import make_channel
from leeward.rpc.client_errors import rpc_errors
from leeward.rpc.client_streams import stream_errors
from leeward.tls import TlsMaterial

TunnelCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.TunnelFrame, pb.TunnelFrame]"

_Response = TypeVar("_Response")

_MIB = 1024 * 1024

SEND_BYTES = ("leeward-send-bytes", "1")
"""In the initial metadata of StoreImage: the agent has accepted the header, and wants the image's bytes."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long calls may take, in seconds. What the guest itself is given (a grace period) is added."""

    read_s: float = 5.0
    act_s: float = 60.0
    watch_s: float = 3600.0
    slowest_image_mib_s: float = 1.0
    longest_image_s: float = 4 * 3600.0  # For reading, where the size is not known before.


class GrpcAgentClient:
    """One node's agent, over a channel that whoever made it closes.

    Without a connection a call raises AgentUnavailable, and the agent has not got it. A call that is broken off, or
    late, raises AgentIndefinite when it may have changed something, and AgentUnavailable when it only asked. What the
    agent itself raises keeps its class.
    """

    def __init__(self, channel: grpc.aio.Channel, *, node: str, deadlines: Deadlines | None = None) -> None:
        self._stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        self._peer = f"the agent of {node}"
        self._deadlines = deadlines or Deadlines()

    async def describe_node(self) -> NodeReport:
        answer = await self._ask(lambda t: self._stub.DescribeNode(pb.DescribeNodeRequest(), timeout=t))
        return convert.report_from_wire(answer.report)

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        answer = await self._ask(lambda t: self._stub.ListGuests(pb.ListGuestsRequest(), timeout=t))
        return tuple(convert.status_from_wire(guest) for guest in answer.guests)

    async def get_guest(self, *, uid: str) -> GuestStatus:
        answer = await self._ask(lambda t: self._stub.GetGuest(pb.GetGuestRequest(uid=uid), timeout=t))
        return convert.status_from_wire(answer.guest)

    async def watch_guests(self) -> AsyncGenerator[GuestStatus, None]:
        """As in AgentApi. Ends with AgentUnavailable when the connection is lost, and every hour: watch anew then."""
        request, seconds = pb.WatchGuestsRequest(), self._deadlines.watch_s
        async with aclosing(
            self._stream(lambda: self._stub.WatchGuests(request, timeout=seconds), acts=False)
        ) as answers:
            async for answer in answers:
                yield convert.status_from_wire(answer.guest)

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        answer = await self._ask(lambda t: self._stub.ObserveSlots(pb.ObserveSlotsRequest(), timeout=t))
        return tuple(convert.observation_from_wire(each) for each in answer.observations)

    async def store_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        header = pb.StoreImageHeader(
            pool_id=pool_id, digest=digest, format=convert.disk_format_to_wire(format), size_bytes=size_bytes
        )
        seconds = self._deadlines.act_s + size_bytes / _MIB / self._deadlines.slowest_image_mib_s
        call = self._stub.StoreImage(timeout=seconds)
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
        await self._act(lambda: self._stub.DeleteImage(request, timeout=self._deadlines.act_s))

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.CreateDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda: self._stub.CreateDisk(request, timeout=self._deadlines.act_s))

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.ClaimRunEpochRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda: self._stub.ClaimRunEpoch(request, timeout=self._deadlines.act_s))

    async def start_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        request = pb.StartGuestRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        answer = await self._act(lambda: self._stub.StartGuest(request, timeout=self._deadlines.act_s))
        return convert.status_from_wire(answer.guest)

    async def stop_guest(self, caller: Caller, *, uid: str, grace_period_s: float) -> GuestStatus:
        request = pb.StopGuestRequest(caller=convert.caller_to_wire(caller), uid=uid, grace_period_s=grace_period_s)
        seconds = grace_period_s + self._deadlines.act_s
        answer = await self._act(lambda: self._stub.StopGuest(request, timeout=seconds))
        return convert.status_from_wire(answer.guest)

    async def reboot_guest(self, caller: Caller, *, uid: str, mode: RebootMode, timeout_s: float) -> RebootMode:
        request = pb.RebootGuestRequest(
            caller=convert.caller_to_wire(caller),
            uid=uid,
            mode=convert.reboot_mode_to_wire(mode),
            timeout_s=timeout_s,
        )
        seconds = timeout_s + self._deadlines.act_s
        answer = await self._act(lambda: self._stub.RebootGuest(request, timeout=seconds))
        return convert.reboot_mode_from_wire(answer.mode)

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        request = pb.ResumeGuestRequest(caller=convert.caller_to_wire(caller), uid=uid)
        answer = await self._act(lambda: self._stub.ResumeGuest(request, timeout=self._deadlines.act_s))
        return convert.status_from_wire(answer.guest)

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        request = pb.RemoveGuestRequest(caller=convert.caller_to_wire(caller), uid=uid)
        await self._act(lambda: self._stub.RemoveGuest(request, timeout=self._deadlines.act_s))

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.DeleteDiskRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda: self._stub.DeleteDisk(request, timeout=self._deadlines.act_s))

    async def migrate_guest(
        self, caller: Caller, *, spec: GuestSpec, destination: MigrationDestination, limits: MigrationLimits
    ) -> AsyncGenerator[MigrationProgress, None]:
        request = pb.MigrateGuestRequest(
            caller=convert.caller_to_wire(caller),
            spec=convert.spec_to_wire(spec),
            destination=convert.destination_to_wire(destination),
            limits=convert.limits_to_wire(limits),
        )
        seconds = limits.timeout_s + self._deadlines.act_s
        async with aclosing(
            self._stream(lambda: self._stub.MigrateGuest(request, timeout=seconds), acts=True)
        ) as answers:
            async for answer in answers:
                yield convert.progress_from_wire(answer.progress)

    async def cancel_migration(self, caller: Caller, *, uid: str) -> None:
        request = pb.CancelMigrationRequest(caller=convert.caller_to_wire(caller), uid=uid)
        await self._act(lambda: self._stub.CancelMigration(request, timeout=self._deadlines.act_s))

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        request = pb.ReadConsoleRequest(uid=uid, offset=offset, limit_bytes=limit_bytes)
        answer = await self._ask(lambda t: self._stub.ReadConsole(request, timeout=t))
        return convert.console_from_wire(answer)

    @asynccontextmanager
    async def tunnel(self, *, timeout_s: float) -> AsyncGenerator[TunnelCall, None]:
        """One migration connection to this agent, to be written and read inside the block, by an agent.

        What gRPC raises inside comes out as AgentUnavailable, or as the agent's own error.
        """
        call = self._stub.Tunnel(timeout=timeout_s)
        try:
            async with self._stream_errors(call, acts=False):
                yield call
        finally:
            call.cancel()

    def _errors(self, *, acts: bool) -> AbstractContextManager[None]:
        return rpc_errors(self._peer, unreachable=AgentUnavailable, lost=_lost(acts=acts))

    def _stream_errors(self, call: grpc.aio.Call, *, acts: bool) -> AbstractAsyncContextManager[None]:
        return stream_errors(call, self._peer, unreachable=AgentUnavailable, lost=_lost(acts=acts))

    async def _ask(self, send: Callable[[float], Awaitable[_Response]]) -> _Response:
        with self._errors(acts=False):
            return await send(self._deadlines.read_s)

    async def _act(self, send: Callable[[], Awaitable[_Response]]) -> _Response:
        with self._errors(acts=True):
            return await send()

    async def _stream(
        self, send: "Callable[[], grpc.aio.UnaryStreamCall[Any, _Response]]", *, acts: bool
    ) -> AsyncGenerator[_Response, None]:
        with self._errors(acts=acts):
            call = send()
            try:
                async for answer in call:
                    yield answer
            finally:
                call.cancel()


async def _send_image(
    call: "grpc.aio.StreamUnaryCall[pb.StoreImageRequest, pb.StoreImageResponse]", chunks: AsyncIterator[bytes]
) -> None:
    async for chunk in chunks:
        for start in range(0, len(chunk), _MIB):
            await call.write(pb.StoreImageRequest(chunk=chunk[start : start + _MIB]))
    await call.done_writing()


def _lost(*, acts: bool) -> type[Unavailable]:
    return AgentIndefinite if acts else AgentUnavailable


@asynccontextmanager
async def connect_agent(
    node: str, address: str, tls: TlsMaterial | None, *, deadlines: Deadlines | None = None
) -> AsyncGenerator[GrpcAgentClient, None]:
    """A client for the agent of `node` at `address`, which must prove that name; its channel is closed at the end."""
    async with make_channel(address, tls, server_name=agent_server_name(node)) as channel:
        yield GrpcAgentClient(channel, node=node, deadlines=deadlines)
