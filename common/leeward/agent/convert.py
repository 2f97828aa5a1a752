"""The values of `leeward.agent.types` to and from their protobuf messages, which have the same field names.

With `leeward.agent.client` and the agent's servicers, this is all that sees messages of the agent API. Decoding
checks what the wire cannot promise: a sub-message that is missing, or an enum value of another version, raises
InvalidArgument.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestProbe,
    GuestSpec,
    GuestStatus,
    ImageFile,
    Inventory,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    PoolSource,
    RebootMode,
    SlotObservation,
    SnapshotFile,
)
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import InvalidArgument
from leeward.mapping import from_message, to_message

_Value = TypeVar("_Value")
_Wire = TypeVar("_Wire", bound=Message)
_Member = TypeVar("_Member", bound=StrEnum)
_WireEnum = TypeVar("_WireEnum", bound=int)


class _WithCaller(Protocol):
    @property
    def caller(self) -> pb.Caller: ...


class _WithSpec(Protocol):
    @property
    def spec(self) -> pb.GuestSpec: ...


class _WithSource(Protocol):
    @property
    def source(self) -> pb.PoolSource: ...


def _filled(value: Any, message: _Wire) -> _Wire:
    to_message(value, message)
    return message


def _read(kind: type[_Value], message: Message) -> _Value:
    try:
        return from_message(kind, message)
    except ValueError as error:
        raise InvalidArgument(f"a {kind.__name__} cannot be understood: {error}") from error


def _part(kind: type[_Value], request: Any, field: str) -> _Value:
    if not request.HasField(field):
        raise InvalidArgument.field(field, "is missing")
    return _read(kind, getattr(request, field))


class _EnumMap(Generic[_Member, _WireEnum]):
    """One enum of ours that is a field of a request by itself, and its wire twin."""

    def __init__(self, members: type[_Member], prefix: str, wire: Mapping[str, _WireEnum]) -> None:
        self._name = members.__name__
        self._to_wire = {member: wire[f"{prefix}_{member.name}"] for member in members}
        self._from_wire = {value: member for member, value in self._to_wire.items()}

    def to_wire(self, member: _Member) -> _WireEnum:
        return self._to_wire[member]

    def from_wire(self, value: _WireEnum) -> _Member:
        """Raises InvalidArgument for 0 (never set) and for a value of a later version."""
        member = self._from_wire.get(value)
        if member is None:
            raise InvalidArgument.field(self._name, f"value {int(value)} is unspecified or not known to this version")
        return member


_disk_format = _EnumMap(DiskFormat, "DISK_FORMAT", dict(pb.DiskFormat.items()))
_reboot_mode = _EnumMap(RebootMode, "REBOOT_MODE", dict(pb.RebootMode.items()))

disk_format_to_wire = _disk_format.to_wire
disk_format_from_wire = _disk_format.from_wire
reboot_mode_to_wire = _reboot_mode.to_wire
reboot_mode_from_wire = _reboot_mode.from_wire


def caller_to_wire(caller: Caller) -> pb.Caller:
    return _filled(caller, pb.Caller())


def caller_of(request: _WithCaller) -> Caller:
    """Who makes a mutating call. Raises InvalidArgument when it does not say so fully."""
    caller = _part(Caller, request, "caller")
    if not caller.operation or caller.revision <= 0:
        raise InvalidArgument.field("caller", "needs the operation's name and a positive revision")
    return caller


def spec_to_wire(spec: GuestSpec) -> pb.GuestSpec:
    return _filled(spec, pb.GuestSpec())


def spec_of(request: _WithSpec) -> GuestSpec:
    """The guest that a call is about. Raises InvalidArgument when it is missing."""
    return _part(GuestSpec, request, "spec")


def status_to_wire(status: GuestStatus) -> pb.GuestStatus:
    return _filled(status, pb.GuestStatus())


def status_from_wire(wire: pb.GuestStatus) -> GuestStatus:
    return _read(GuestStatus, wire)


def probe_to_wire(probe: GuestProbe) -> pb.GuestProbe:
    return _filled(probe, pb.GuestProbe())


def probe_from_wire(wire: pb.GuestProbe) -> GuestProbe:
    return _read(GuestProbe, wire)


def observation_to_wire(observation: SlotObservation) -> pb.SlotObservation:
    return _filled(observation, pb.SlotObservation())


def observation_from_wire(wire: pb.SlotObservation) -> SlotObservation:
    return _read(SlotObservation, wire)


def image_to_wire(image: ImageFile) -> pb.ImageFile:
    return _filled(image, pb.ImageFile())


def image_from_wire(wire: pb.ImageFile) -> ImageFile:
    return _read(ImageFile, wire)


def snapshot_to_wire(snapshot: SnapshotFile) -> pb.SnapshotFile:
    return _filled(snapshot, pb.SnapshotFile())


def snapshot_from_wire(wire: pb.SnapshotFile) -> SnapshotFile:
    return _read(SnapshotFile, wire)


def source_to_wire(source: PoolSource) -> pb.PoolSource:
    return _filled(source, pb.PoolSource())


def source_of(request: _WithSource) -> PoolSource:
    """Where something is to be had. Raises InvalidArgument when it is missing."""
    return _part(PoolSource, request, "source")


def inventory_to_wire(inventory: Inventory) -> pb.Inventory:
    return _filled(inventory, pb.Inventory())


def inventory_from_wire(wire: pb.Inventory) -> Inventory:
    return _read(Inventory, wire)


def destination_to_wire(destination: MigrationDestination) -> pb.MigrationDestination:
    return _filled(destination, pb.MigrationDestination())


def destination_of(request: pb.MigrateGuestRequest) -> MigrationDestination:
    """Where a migration goes. Raises InvalidArgument when it is missing."""
    return _part(MigrationDestination, request, "destination")


def limits_to_wire(limits: MigrationLimits) -> pb.MigrationLimits:
    return _filled(limits, pb.MigrationLimits())


def limits_of(request: pb.MigrateGuestRequest) -> MigrationLimits:
    """The bounds of a migration. Raises InvalidArgument when they are missing."""
    return _part(MigrationLimits, request, "limits")


def progress_to_wire(progress: MigrationProgress) -> pb.MigrationProgress:
    return _filled(progress, pb.MigrationProgress())


def progress_from_wire(wire: pb.MigrationProgress) -> MigrationProgress:
    return _read(MigrationProgress, wire)


def console_from_wire(wire: pb.ReadConsoleResponse) -> ConsoleChunk:
    return _read(ConsoleChunk, wire)


def console_to_wire(chunk: ConsoleChunk) -> pb.ReadConsoleResponse:
    return _filled(chunk, pb.ReadConsoleResponse())


def report_to_wire(report: NodeReport) -> pb.NodeReport:
    return _filled(report, pb.NodeReport())


def report_from_wire(wire: pb.NodeReport) -> NodeReport:
    return _read(NodeReport, wire)


def encode_node_report(report: NodeReport) -> bytes:
    """The value of the node's heartbeat key, `keys.lease(node)`."""
    return report_to_wire(report).SerializeToString(deterministic=True)


def decode_node_report(value: bytes) -> NodeReport:
    """What a heartbeat key says. Raises InvalidArgument when the bytes are no report."""
    try:
        return report_from_wire(pb.NodeReport.FromString(value))
    except DecodeError as error:
        raise InvalidArgument(f"the value of a heartbeat key is not a NodeReport: {error}") from error
