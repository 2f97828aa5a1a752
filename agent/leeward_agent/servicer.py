"""`AgentService` over the agent's core: messages to values and back, nothing else."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from leeward.agent import convert
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import InvalidArgument
from leeward_agent.core import Agent
from leeward_agent.servicer_disks import DiskServicer
from leeward_agent.streams import Streams
from leeward_agent.tunnel_server import TunnelServer

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AgentServicer(DiskServicer):
    """Errors go through to the server's interceptor. Long streams end with Draining when the agent stops."""

    def __init__(self, agent: Agent, tunnels: TunnelServer, streams: Streams) -> None:
        super().__init__(agent)
        self._tunnels = tunnels
        self._streams = streams

    async def DescribeNode(self, request: pb.DescribeNodeRequest, context: _Context) -> pb.DescribeNodeResponse:
        return pb.DescribeNodeResponse(report=convert.report_to_wire(await self._agent.describe_node()))

    async def ListGuests(self, request: pb.ListGuestsRequest, context: _Context) -> pb.ListGuestsResponse:
        guests = await self._agent.list_guests()
        return pb.ListGuestsResponse(guests=[convert.status_to_wire(guest) for guest in guests])

    async def GetGuest(self, request: pb.GetGuestRequest, context: _Context) -> pb.GetGuestResponse:
        return pb.GetGuestResponse(guest=convert.status_to_wire(await self._agent.get_guest(uid=request.uid)))

    async def WatchGuests(
        self, request: pb.WatchGuestsRequest, context: _Context
    ) -> AsyncGenerator[pb.WatchGuestsResponse, None]:
        async with aclosing(self._streams.until_draining(self._agent.watch_guests())) as changes:
            async for change in changes:
                yield pb.WatchGuestsResponse(guest=convert.status_to_wire(change))

    async def ObserveSlots(self, request: pb.ObserveSlotsRequest, context: _Context) -> pb.ObserveSlotsResponse:
        observations = await self._agent.observe_slots()
        return pb.ObserveSlotsResponse(observations=[convert.observation_to_wire(each) for each in observations])

    async def LeavePill(self, request: pb.LeavePillRequest, context: _Context) -> pb.LeavePillResponse:
        await self._agent.leave_pill(node=request.node, boot_id=request.boot_id, pill_id=request.pill_id)
        return pb.LeavePillResponse()

    async def WithdrawPill(self, request: pb.WithdrawPillRequest, context: _Context) -> pb.WithdrawPillResponse:
        await self._agent.withdraw_pill(pill_id=request.pill_id)
        return pb.WithdrawPillResponse()

    async def ClaimRunEpoch(self, request: pb.ClaimRunEpochRequest, context: _Context) -> pb.ClaimRunEpochResponse:
        await self._agent.claim_run_epoch(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.ClaimRunEpochResponse()

    async def StartGuest(self, request: pb.StartGuestRequest, context: _Context) -> pb.StartGuestResponse:
        guest = await self._agent.start_guest(
            convert.caller_of(request), spec=convert.spec_of(request), paused=request.paused
        )
        return pb.StartGuestResponse(guest=convert.status_to_wire(guest))

    async def StopGuest(self, request: pb.StopGuestRequest, context: _Context) -> pb.StopGuestResponse:
        guest = await self._agent.stop_guest(
            convert.caller_of(request), uid=request.uid, grace_period_s=request.grace_period_s
        )
        return pb.StopGuestResponse(guest=convert.status_to_wire(guest))

    async def ProbeGuest(self, request: pb.ProbeGuestRequest, context: _Context) -> pb.ProbeGuestResponse:
        why = await self._agent.probe_guest(uid=request.uid, probe=convert.probe_from_wire(request.probe))
        return pb.ProbeGuestResponse(silent_because=why)

    async def RebootGuest(self, request: pb.RebootGuestRequest, context: _Context) -> pb.RebootGuestResponse:
        mode = await self._agent.reboot_guest(
            convert.caller_of(request),
            uid=request.uid,
            mode=convert.reboot_mode_from_wire(request.mode),
            timeout_s=request.timeout_s,
        )
        return pb.RebootGuestResponse(mode=convert.reboot_mode_to_wire(mode))

    async def PauseGuest(self, request: pb.PauseGuestRequest, context: _Context) -> pb.PauseGuestResponse:
        guest = await self._agent.pause_guest(convert.caller_of(request), uid=request.uid)
        return pb.PauseGuestResponse(guest=convert.status_to_wire(guest))

    async def ResumeGuest(self, request: pb.ResumeGuestRequest, context: _Context) -> pb.ResumeGuestResponse:
        guest = await self._agent.resume_guest(convert.caller_of(request), uid=request.uid)
        return pb.ResumeGuestResponse(guest=convert.status_to_wire(guest))

    async def SuspendGuest(self, request: pb.SuspendGuestRequest, context: _Context) -> pb.SuspendGuestResponse:
        guest = await self._agent.suspend_guest(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.SuspendGuestResponse(guest=convert.status_to_wire(guest))

    async def WakeGuest(self, request: pb.WakeGuestRequest, context: _Context) -> pb.WakeGuestResponse:
        guest = await self._agent.wake_guest(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.WakeGuestResponse(guest=convert.status_to_wire(guest))

    async def DiscardMemory(self, request: pb.DiscardMemoryRequest, context: _Context) -> pb.DiscardMemoryResponse:
        await self._agent.discard_memory(convert.caller_of(request), spec=convert.spec_of(request))
        return pb.DiscardMemoryResponse()

    async def InjectNmi(self, request: pb.InjectNmiRequest, context: _Context) -> pb.InjectNmiResponse:
        await self._agent.inject_nmi(convert.caller_of(request), uid=request.uid)
        return pb.InjectNmiResponse()

    async def RemoveGuest(self, request: pb.RemoveGuestRequest, context: _Context) -> pb.RemoveGuestResponse:
        await self._agent.remove_guest(convert.caller_of(request), uid=request.uid)
        return pb.RemoveGuestResponse()

    async def MigrateGuest(
        self, request: pb.MigrateGuestRequest, context: _Context
    ) -> AsyncGenerator[pb.MigrateGuestResponse, None]:
        moments = self._agent.migrate_guest(
            convert.caller_of(request),
            spec=convert.spec_of(request),
            destination=convert.destination_of(request),
            limits=convert.limits_of(request),
        )
        async with aclosing(moments):
            async for moment in moments:
                yield pb.MigrateGuestResponse(progress=convert.progress_to_wire(moment))

    async def CancelMigration(
        self, request: pb.CancelMigrationRequest, context: _Context
    ) -> pb.CancelMigrationResponse:
        await self._agent.cancel_migration(convert.caller_of(request), uid=request.uid)
        return pb.CancelMigrationResponse()

    async def ReadConsole(self, request: pb.ReadConsoleRequest, context: _Context) -> pb.ReadConsoleResponse:
        chunk = await self._agent.read_console(uid=request.uid, offset=request.offset, limit_bytes=request.limit_bytes)
        return convert.console_to_wire(chunk)

    async def AttachConsole(
        self, request_iterator: AsyncIterator[pb.AttachConsoleRequest], context: _Context
    ) -> AsyncGenerator[pb.AttachConsoleResponse, None]:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument.field("header", "must be the first message")
        output = self._agent.attach_console(
            uid=first.header.uid, input=_console_input(request_iterator), take_over=first.header.take_over
        )
        async with aclosing(self._streams.until_draining(output)) as chunks:
            async for chunk in chunks:
                yield pb.AttachConsoleResponse(output=chunk)

    # gRPC also takes a coroutine that writes its answers itself, which the stubs do not know.
    async def Tunnel(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.TunnelFrame], context: _Context
    ) -> None:
        await self._tunnels.serve(request_iterator, context)


async def _console_input(requests: AsyncIterator[pb.AttachConsoleRequest]) -> AsyncGenerator[bytes, None]:
    async for request in requests:
        if request.WhichOneof("part") != "input":
            raise InvalidArgument.field("input", "must be all that follows the header")
        yield request.input
