"""AgentApi over gRPC."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import TypeAlias

import grpc

from leeward.agent import convert
from leeward.agent.calls import Deadlines
from leeward.agent.console_calls import ConsoleCalls
from leeward.agent.disk_calls import SEND_BYTES, DiskCalls
from leeward.agent.types import (
    Caller,
    GuestProbe,
    GuestSpec,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    RebootMode,
    SlotObservation,
)
from leeward.agent.v1 import agent_pb2 as pb
from leeward.identity import agent_server_name
from leeward.rpc.channel import make_channel
from leeward.tls import TlsMaterial

__all__ = ["SEND_BYTES", "Deadlines", "GrpcAgentClient", "TunnelCall", "connect_agent"]

TunnelCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.TunnelFrame, pb.TunnelFrame]"


class GrpcAgentClient(DiskCalls, ConsoleCalls):
    """One node's agent, over a channel that whoever made it closes. Errors are those of `AgentCalls`."""

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

    async def leave_pill(self, *, node: str, boot_id: str, pill_id: str) -> None:
        request = pb.LeavePillRequest(node=node, boot_id=boot_id, pill_id=pill_id)
        await self._act(lambda t: self._stub.LeavePill(request, timeout=t))

    async def withdraw_pill(self, *, pill_id: str) -> None:
        await self._act(lambda t: self._stub.WithdrawPill(pb.WithdrawPillRequest(pill_id=pill_id), timeout=t))

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.ClaimRunEpochRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.ClaimRunEpoch(request, timeout=t))

    async def start_guest(self, caller: Caller, *, spec: GuestSpec, paused: bool = False) -> GuestStatus:
        request = pb.StartGuestRequest(
            caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec), paused=paused
        )
        answer = await self._act(lambda t: self._stub.StartGuest(request, timeout=t))
        return convert.status_from_wire(answer.guest)

    async def stop_guest(self, caller: Caller, *, uid: str, grace_period_s: float) -> GuestStatus:
        request = pb.StopGuestRequest(caller=convert.caller_to_wire(caller), uid=uid, grace_period_s=grace_period_s)
        seconds = grace_period_s + self._deadlines.act_s
        answer = await self._act(lambda t: self._stub.StopGuest(request, timeout=t), within_s=seconds)
        return convert.status_from_wire(answer.guest)

    async def reboot_guest(self, caller: Caller, *, uid: str, mode: RebootMode, timeout_s: float) -> RebootMode:
        request = pb.RebootGuestRequest(
            caller=convert.caller_to_wire(caller),
            uid=uid,
            mode=convert.reboot_mode_to_wire(mode),
            timeout_s=timeout_s,
        )
        seconds = timeout_s + self._deadlines.act_s
        answer = await self._act(lambda t: self._stub.RebootGuest(request, timeout=t), within_s=seconds)
        return convert.reboot_mode_from_wire(answer.mode)

    async def pause_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        request = pb.PauseGuestRequest(caller=convert.caller_to_wire(caller), uid=uid)
        answer = await self._act(lambda t: self._stub.PauseGuest(request, timeout=t))
        return convert.status_from_wire(answer.guest)

    async def suspend_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        request = pb.SuspendGuestRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        seconds = self._deadlines.moving(spec.memory_mib)
        answer = await self._act(lambda t: self._stub.SuspendGuest(request, timeout=t), within_s=seconds)
        return convert.status_from_wire(answer.guest)

    async def wake_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        request = pb.WakeGuestRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        seconds = self._deadlines.moving(spec.memory_mib)
        answer = await self._act(lambda t: self._stub.WakeGuest(request, timeout=t), within_s=seconds)
        return convert.status_from_wire(answer.guest)

    async def discard_memory(self, caller: Caller, *, spec: GuestSpec) -> None:
        request = pb.DiscardMemoryRequest(caller=convert.caller_to_wire(caller), spec=convert.spec_to_wire(spec))
        await self._act(lambda t: self._stub.DiscardMemory(request, timeout=t))

    async def inject_nmi(self, caller: Caller, *, uid: str) -> None:
        request = pb.InjectNmiRequest(caller=convert.caller_to_wire(caller), uid=uid)
        await self._act(lambda t: self._stub.InjectNmi(request, timeout=t))

    async def probe_guest(self, *, uid: str, probe: GuestProbe) -> str:
        request = pb.ProbeGuestRequest(uid=uid, probe=convert.probe_to_wire(probe))
        answer = await self._ask(lambda t: self._stub.ProbeGuest(request, timeout=t), within_s=self._deadlines.probe_s)
        return str(answer.silent_because)

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        request = pb.ResumeGuestRequest(caller=convert.caller_to_wire(caller), uid=uid)
        answer = await self._act(lambda t: self._stub.ResumeGuest(request, timeout=t))
        return convert.status_from_wire(answer.guest)

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        request = pb.RemoveGuestRequest(caller=convert.caller_to_wire(caller), uid=uid)
        await self._act(lambda t: self._stub.RemoveGuest(request, timeout=t))

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
        await self._act(lambda t: self._stub.CancelMigration(request, timeout=t))

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


@asynccontextmanager
async def connect_agent(
    node: str, address: str, tls: TlsMaterial | None, *, deadlines: Deadlines | None = None
) -> AsyncGenerator[GrpcAgentClient, None]:
    """A client for the agent of `node` at `address`, which must prove that name; its channel is closed at the end."""
    async with make_channel(address, tls, server_name=agent_server_name(node)) as channel:
        yield GrpcAgentClient(channel, node=node, deadlines=deadlines)
