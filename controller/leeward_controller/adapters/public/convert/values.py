"""The small parts that all messages share."""

import hashlib
from collections.abc import Collection
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from leeward.agent.types import MigrationPhase, MigrationProgress
from leeward.errors import FieldViolation, InvalidArgument
from leeward.identity import Role
from leeward.mapping import write_time
from leeward.rpc.server_auth import current_principal
from leeward.v1 import operation_pb2 as pb
from leeward.v1 import watch_pb2
from leeward_controller.domain.node_operation import DrainProgress, Move, MovePhase
from leeward_controller.domain.operation import StepRecord
from leeward_controller.operations.submit import Requester
from leeward_controller.services.watches import WatchEventType

_NOT_PART_OF_THE_REQUEST = {"request_id", "validate_only"}


def timestamp(time: datetime) -> Timestamp:
    """A time as it is on the wire."""
    message = Timestamp()
    write_time(message, time)
    return message


def duration(seconds: float) -> Duration:
    """A span of seconds as it is on the wire."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1_000_000_000))
    return message


def seconds(message: Message, field: str) -> float | None:
    """The Duration in `field` in seconds, None when it is not set."""
    if not message.HasField(field):
        return None
    value: Duration = getattr(message, field)
    return value.seconds + value.nanos / 1_000_000_000


def masked(mask: FieldMask, allowed: Collection[str], given: Collection[str]) -> frozenset[str]:
    """The fields to change: those of the mask, all for `*`, and without a mask those that are `given`.

    Raises InvalidArgument, naming each path that cannot be changed.
    """
    if not mask.paths:
        return frozenset(given)
    if list(mask.paths) == ["*"]:
        return frozenset(allowed)
    told = ", ".join(allowed)
    wrong = [
        FieldViolation("update_mask", f"{path!r} cannot be changed; what can is {told}")
        for path in mask.paths
        if path not in allowed
    ]
    if wrong:
        raise InvalidArgument("; ".join(f"{each.field}: {each.description}" for each in wrong), fields=wrong)
    return frozenset(mask.paths)


def requester_of(request: Message) -> Requester:
    """Who makes this request, and what identifies it when it is made again."""
    principal = current_principal()
    bare = type(request)()
    bare.CopyFrom(request)
    for field in _NOT_PART_OF_THE_REQUEST & set(bare.DESCRIPTOR.fields_by_name):
        bare.ClearField(field)
    kind = type(request).DESCRIPTOR.full_name.encode()
    digest = hashlib.sha256(kind + b"\0" + bare.SerializeToString(deterministic=True)).hexdigest()
    return Requester(
        principal=str(principal),
        request_id=getattr(request, "request_id", ""),
        fingerprint=digest,
        admin=principal.role is Role.ADMIN,
    )


def step_to_wire(step: StepRecord) -> pb.OperationStep:
    """One step that was taken."""
    return pb.OperationStep(
        step=step.step,
        start_time=timestamp(step.start_time),
        duration=duration(step.seconds),
        controller=step.controller,
        outcome=step.outcome,
    )


def watch_event_type(type_: WatchEventType) -> "watch_pb2.WatchEventType.ValueType":
    """What a message of a watch tells."""
    return watch_pb2.WatchEventType.Value(f"WATCH_EVENT_TYPE_{type_.name}")


def progress_to_wire(progress: MigrationProgress) -> pb.MigrationProgress:
    """One moment of a migration."""
    return pb.MigrationProgress(
        phase=pb.MigrationPhase.Value(f"MIGRATION_PHASE_{progress.phase.name}"),
        elapsed=duration(progress.elapsed_ms / 1000),
        memory_total_bytes=progress.memory_total_bytes,
        memory_processed_bytes=progress.memory_processed_bytes,
        memory_remaining_bytes=progress.memory_remaining_bytes,
        dirty_rate_bytes_per_second=progress.dirty_rate_bytes_s,
        throughput_bytes_per_second=progress.throughput_bytes_s,
        iteration=progress.iteration,
        remaining=duration(progress.remaining_ms / 1000),
        expected_downtime=duration(progress.expected_downtime_ms / 1000),
        downtime=duration(progress.downtime_ms / 1000),
        decision=progress.decision,
        error=progress.error,
    )


def progress_from_wire(wire: pb.MigrationProgress) -> MigrationProgress | None:
    """The same back; None when it tells nothing that this version knows."""
    try:
        phase = MigrationPhase(pb.MigrationPhase.Name(wire.phase).removeprefix("MIGRATION_PHASE_"))
    except ValueError:
        # A replica of another version: what it tells is only passed on, so it can be left out.
        return None
    return MigrationProgress(
        phase=phase,
        elapsed_ms=_milliseconds(wire.elapsed),
        memory_total_bytes=wire.memory_total_bytes,
        memory_processed_bytes=wire.memory_processed_bytes,
        memory_remaining_bytes=wire.memory_remaining_bytes,
        dirty_rate_bytes_s=wire.dirty_rate_bytes_per_second,
        throughput_bytes_s=wire.throughput_bytes_per_second,
        iteration=wire.iteration,
        remaining_ms=_milliseconds(wire.remaining),
        expected_downtime_ms=_milliseconds(wire.expected_downtime),
        downtime_ms=_milliseconds(wire.downtime),
        decision=wire.decision,
        error=wire.error,
    )


def drain_to_wire(progress: DrainProgress) -> pb.DrainProgress:
    """How far an operation is that moves the instances of a node."""
    return pb.DrainProgress(
        moves=[
            pb.InstanceMove(
                instance=move.instance,
                operation=move.operation,
                phase=pb.MovePhase.Value(f"MOVE_PHASE_{move.phase.name}"),
                percent=move.percent,
                target_node=f"nodes/{move.target_node}" if move.target_node else "",
                error=move.error,
                attempt=move.attempt,
            )
            for move in progress.moves
        ],
        moved=progress.count(MovePhase.MOVED),
        staying=progress.count(MovePhase.STAYS),
        failed=progress.count(MovePhase.FAILED),
    )


def drain_from_wire(wire: pb.DrainProgress) -> DrainProgress:
    """The same back, as far as this version knows it."""
    return DrainProgress(
        tuple(
            Move(
                instance=move.instance,
                instance_uid="",
                phase=MovePhase[phase],
                operation=move.operation,
                attempt=move.attempt,
                percent=move.percent,
                target_node=move.target_node.removeprefix("nodes/"),
                error=move.error,
            )
            for move in wire.moves
            if (phase := pb.MovePhase.Name(move.phase).removeprefix("MOVE_PHASE_")) in MovePhase.__members__
        )
    )


def _milliseconds(value: Duration) -> int:
    return value.seconds * 1000 + value.nanos // 1_000_000
