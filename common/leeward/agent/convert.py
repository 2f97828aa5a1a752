"""The values of `leeward.agent.types` to and from their protobuf messages.

With `leeward.agent.client` and the agent's servicer, this is all that sees messages of the agent API. Decoding
checks what the wire cannot promise: a sub-message that is missing, or an enum value of another version, raises
InvalidArgument.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestSpec,
    GuestState,
    GuestStatus,
    ImageFile,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    Nic,
    NodeReport,
    PoolKind,
    PoolReport,
    RebootMode,
    SlotObservation,
    StopCause,
)
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import InvalidArgument

_Member = TypeVar("_Member", bound=StrEnum)
_Wire = TypeVar("_Wire", bound=int)


class _EnumMap(Generic[_Member, _Wire]):
    """One enum of ours and its wire twin, whose values have the same names behind the enum's own prefix."""

    def __init__(self, members: type[_Member], prefix: str, wire: Mapping[str, _Wire]) -> None:
        self._name = members.__name__
        self._to_wire = {member: wire[f"{prefix}_{member.name}"] for member in members}
        self._from_wire = {value: member for member, value in self._to_wire.items()}

    def to_wire(self, member: _Member) -> _Wire:
        return self._to_wire[member]

    def from_wire(self, value: _Wire) -> _Member:
        """Raises InvalidArgument for 0 (never set) and for a value of a later version."""
        member = self._from_wire.get(value)
        if member is None:
            raise InvalidArgument.field(self._name, f"value {int(value)} is unspecified or not known to this version")
        return member


_guest_state = _EnumMap(GuestState, "GUEST_STATE", dict(pb.GuestState.items()))
_stop_cause = _EnumMap(StopCause, "STOP_CAUSE", dict(pb.StopCause.items()))
_disk_format = _EnumMap(DiskFormat, "DISK_FORMAT", dict(pb.DiskFormat.items()))
_pool_kind = _EnumMap(PoolKind, "POOL_KIND", dict(pb.PoolKind.items()))
_reboot_mode = _EnumMap(RebootMode, "REBOOT_MODE", dict(pb.RebootMode.items()))
_migration_phase = _EnumMap(MigrationPhase, "MIGRATION_PHASE", dict(pb.MigrationPhase.items()))

disk_format_to_wire = _disk_format.to_wire
disk_format_from_wire = _disk_format.from_wire
reboot_mode_to_wire = _reboot_mode.to_wire
reboot_mode_from_wire = _reboot_mode.from_wire


def _require(message: Message, field: str) -> None:
    if not message.HasField(field):
        raise InvalidArgument.field(field, "is missing")


def caller_to_wire(caller: Caller) -> pb.Caller:
    return pb.Caller(operation=caller.operation, step=caller.step, claim_revision=caller.claim_revision)


def caller_of(
    request: pb.CreateDiskRequest
    | pb.ClaimRunEpochRequest
    | pb.StartGuestRequest
    | pb.StopGuestRequest
    | pb.RebootGuestRequest
    | pb.ResumeGuestRequest
    | pb.RemoveGuestRequest
    | pb.DeleteDiskRequest
    | pb.MigrateGuestRequest
    | pb.CancelMigrationRequest,
) -> Caller:
    """Who makes a mutating call. Raises InvalidArgument when it does not say so fully."""
    _require(request, "caller")
    wire = request.caller
    if not wire.operation or wire.claim_revision <= 0:
        raise InvalidArgument.field("caller", "needs the operation's name and a positive claim_revision")
    return Caller(operation=wire.operation, step=wire.step, claim_revision=wire.claim_revision)


def spec_to_wire(spec: GuestSpec) -> pb.GuestSpec:
    return pb.GuestSpec(
        uid=spec.uid,
        name=spec.name,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        disk_gib=spec.disk_gib,
        pool_id=spec.pool_id,
        image_digest=spec.image_digest,
        image_format=_disk_format.to_wire(spec.image_format),
        run_epoch=spec.run_epoch,
        nics=[pb.Nic(mac=nic.mac, bridge=nic.bridge) for nic in spec.nics],
    )


def spec_of(
    request: pb.CreateDiskRequest
    | pb.ClaimRunEpochRequest
    | pb.StartGuestRequest
    | pb.DeleteDiskRequest
    | pb.MigrateGuestRequest,
) -> GuestSpec:
    """The guest that a call is about. Raises InvalidArgument when it is missing."""
    _require(request, "spec")
    wire = request.spec
    return GuestSpec(
        uid=wire.uid,
        name=wire.name,
        vcpus=wire.vcpus,
        memory_mib=wire.memory_mib,
        disk_gib=wire.disk_gib,
        pool_id=wire.pool_id,
        image_digest=wire.image_digest,
        image_format=_disk_format.from_wire(wire.image_format),
        run_epoch=wire.run_epoch,
        nics=tuple(Nic(mac=nic.mac, bridge=nic.bridge) for nic in wire.nics),
    )


def status_to_wire(status: GuestStatus) -> pb.GuestStatus:
    return pb.GuestStatus(
        uid=status.uid,
        name=status.name,
        state=_guest_state.to_wire(status.state),
        stop_cause=_stop_cause.to_wire(status.stop_cause),
        run_epoch=status.run_epoch,
        migrating=status.migrating,
    )


def status_from_wire(wire: pb.GuestStatus) -> GuestStatus:
    return GuestStatus(
        uid=wire.uid,
        name=wire.name,
        state=_guest_state.from_wire(wire.state),
        stop_cause=_stop_cause.from_wire(wire.stop_cause),
        run_epoch=wire.run_epoch,
        migrating=wire.migrating,
    )


def observation_to_wire(observation: SlotObservation) -> pb.SlotObservation:
    return pb.SlotObservation(
        pool_id=observation.pool_id,
        node=observation.node,
        boot_id=observation.boot_id,
        sequence=observation.sequence,
        silent_s=observation.silent_s,
    )


def observation_from_wire(wire: pb.SlotObservation) -> SlotObservation:
    return SlotObservation(
        pool_id=wire.pool_id, node=wire.node, boot_id=wire.boot_id, sequence=wire.sequence, silent_s=wire.silent_s
    )


def image_to_wire(image: ImageFile) -> pb.ImageFile:
    return pb.ImageFile(
        digest=image.digest,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        format=_disk_format.to_wire(image.format),
    )


def image_from_wire(wire: pb.ImageFile) -> ImageFile:
    return ImageFile(
        digest=wire.digest,
        size_bytes=wire.size_bytes,
        virtual_size_bytes=wire.virtual_size_bytes,
        format=_disk_format.from_wire(wire.format),
    )


def destination_to_wire(destination: MigrationDestination) -> pb.MigrationDestination:
    return pb.MigrationDestination(node=destination.node, address=destination.address, boot_id=destination.boot_id)


def destination_of(request: pb.MigrateGuestRequest) -> MigrationDestination:
    """Where a migration goes. Raises InvalidArgument when it is missing."""
    _require(request, "destination")
    wire = request.destination
    return MigrationDestination(node=wire.node, address=wire.address, boot_id=wire.boot_id)


def limits_to_wire(limits: MigrationLimits) -> pb.MigrationLimits:
    return pb.MigrationLimits(
        bandwidth_mib_s=limits.bandwidth_mib_s,
        max_downtime_ms=limits.max_downtime_ms,
        timeout_s=limits.timeout_s,
    )


def limits_of(request: pb.MigrateGuestRequest) -> MigrationLimits:
    """The bounds of a migration. Raises InvalidArgument when they are missing."""
    _require(request, "limits")
    return MigrationLimits(
        bandwidth_mib_s=request.limits.bandwidth_mib_s,
        max_downtime_ms=request.limits.max_downtime_ms,
        timeout_s=request.limits.timeout_s,
    )


def progress_to_wire(progress: MigrationProgress) -> pb.MigrationProgress:
    return pb.MigrationProgress(
        phase=_migration_phase.to_wire(progress.phase),
        elapsed_ms=progress.elapsed_ms,
        memory_total_bytes=progress.memory_total_bytes,
        memory_processed_bytes=progress.memory_processed_bytes,
        memory_remaining_bytes=progress.memory_remaining_bytes,
        dirty_rate_bytes_s=progress.dirty_rate_bytes_s,
        throughput_bytes_s=progress.throughput_bytes_s,
        iteration=progress.iteration,
        remaining_ms=progress.remaining_ms,
        expected_downtime_ms=progress.expected_downtime_ms,
        downtime_ms=progress.downtime_ms,
        decision=progress.decision,
        error=progress.error,
    )


def progress_from_wire(wire: pb.MigrationProgress) -> MigrationProgress:
    return MigrationProgress(
        phase=_migration_phase.from_wire(wire.phase),
        elapsed_ms=wire.elapsed_ms,
        memory_total_bytes=wire.memory_total_bytes,
        memory_processed_bytes=wire.memory_processed_bytes,
        memory_remaining_bytes=wire.memory_remaining_bytes,
        dirty_rate_bytes_s=wire.dirty_rate_bytes_s,
        throughput_bytes_s=wire.throughput_bytes_s,
        iteration=wire.iteration,
        remaining_ms=wire.remaining_ms,
        expected_downtime_ms=wire.expected_downtime_ms,
        downtime_ms=wire.downtime_ms,
        decision=wire.decision,
        error=wire.error,
    )


def console_from_wire(wire: pb.ReadConsoleResponse) -> ConsoleChunk:
    return ConsoleChunk(data=wire.data, next_offset=wire.next_offset, end_offset=wire.end_offset)


def console_to_wire(chunk: ConsoleChunk) -> pb.ReadConsoleResponse:
    return pb.ReadConsoleResponse(data=chunk.data, next_offset=chunk.next_offset, end_offset=chunk.end_offset)


def report_to_wire(report: NodeReport) -> pb.NodeReport:
    return pb.NodeReport(
        node=report.node,
        boot_id=report.boot_id,
        agent_id=report.agent_id,
        address=report.address,
        vcpus=report.vcpus,
        memory_mib=report.memory_mib,
        pools=[_pool_to_wire(pool) for pool in report.pools],
        hypervisor=report.hypervisor,
        hypervisor_version=report.hypervisor_version,
        agent_version=report.agent_version,
        guard_armed=report.guard_armed,
        lease_ttl_s=report.lease_ttl_s,
        guard_delay_s=report.guard_delay_s,
        labels=report.labels,
        draining=report.draining,
    )


def report_from_wire(wire: pb.NodeReport) -> NodeReport:
    return NodeReport(
        node=wire.node,
        boot_id=wire.boot_id,
        agent_id=wire.agent_id,
        address=wire.address,
        vcpus=wire.vcpus,
        memory_mib=wire.memory_mib,
        pools=tuple(_pool_from_wire(pool) for pool in wire.pools),
        hypervisor=wire.hypervisor,
        hypervisor_version=wire.hypervisor_version,
        agent_version=wire.agent_version,
        guard_armed=wire.guard_armed,
        lease_ttl_s=wire.lease_ttl_s,
        guard_delay_s=wire.guard_delay_s,
        labels=dict(wire.labels),
        draining=wire.draining,
    )


def _pool_to_wire(pool: PoolReport) -> pb.PoolReport:
    return pb.PoolReport(
        pool_id=pool.pool_id,
        kind=_pool_kind.to_wire(pool.kind),
        capacity_gib=pool.capacity_gib,
        available_gib=pool.available_gib,
        healthy=pool.healthy,
    )


def _pool_from_wire(wire: pb.PoolReport) -> PoolReport:
    return PoolReport(
        pool_id=wire.pool_id,
        kind=_pool_kind.from_wire(wire.kind),
        capacity_gib=wire.capacity_gib,
        available_gib=wire.available_gib,
        healthy=wire.healthy,
    )


def encode_node_report(report: NodeReport) -> bytes:
    """The value of the node's heartbeat key, `keys.lease(node)`."""
    return report_to_wire(report).SerializeToString(deterministic=True)


def decode_node_report(value: bytes) -> NodeReport:
    """What a heartbeat key says. Raises InvalidArgument when the bytes are no report."""
    try:
        return report_from_wire(pb.NodeReport.FromString(value))
    except DecodeError as error:
        raise InvalidArgument(f"the value of a heartbeat key is not a NodeReport: {error}") from error
