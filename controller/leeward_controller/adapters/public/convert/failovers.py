"""Failovers."""

from datetime import datetime

from google.protobuf.message import Message

from leeward.v1 import failover_pb2 as pb
from leeward.v1 import node_pb2
from leeward_controller.adapters.public.convert.values import duration, timestamp
from leeward_controller.domain.failover import FailoverGuest, FailoverRecord


def failover_to_wire(record: FailoverRecord) -> pb.Failover:
    """A failover as clients see it."""
    message = pb.Failover(
        name=record.name,
        node=f"nodes/{record.node}",
        boot_id=record.boot_id,
        state=pb.Failover.State.Value(f"STATE_{record.state.name}"),
        begin_time=timestamp(record.begin_time),
        measured=record.measured,
        to_restart_count=record.to_restart,
        left_alone_count=record.left_alone,
        restarted_count=record.restarted,
        failed_count=record.failed,
        no_place_count=record.no_place,
        waiting_count=record.waiting,
        guests=[_guest_to_wire(guest) for guest in record.guests],
        guests_left_out_count=record.guests_left_out,
        kind=pb.Failover.Kind.Value(f"KIND_{record.kind.name}"),
        operation=record.operation,
    )
    if record.proof is not None:
        message.proof_kind = node_pb2.FenceProofKind.Value(f"FENCE_PROOF_KIND_{record.proof.kind.name}")
        message.proof_evidence = record.proof.evidence
        message.proof_time.CopyFrom(timestamp(record.proof.time))
        message.proof_duration.CopyFrom(duration(record.proof.seconds))
    _set(
        message,
        times={
            "first_restart_time": record.first_restart_time,
            "last_restart_time": record.last_restart_time,
            "end_time": record.end_time,
        },
        seconds={
            "detect_duration": record.detect_s,
            "first_restart_duration": record.first_restart_s,
            "last_restart_duration": record.last_restart_s,
            "total_duration": record.total_s,
        },
    )
    return message


def _guest_to_wire(guest: FailoverGuest) -> pb.FailoverGuest:
    message = pb.FailoverGuest(
        instance=guest.instance,
        instance_uid=guest.instance_uid,
        outcome=pb.FailoverGuest.Outcome.Value(f"OUTCOME_{guest.outcome.name}"),
        target_node=f"nodes/{guest.to_node}" if guest.to_node else "",
        operation=guest.operation,
        try_count=guest.tries,
        error=guest.error,
    )
    _set(
        message,
        times={"begin_time": guest.begin_time, "end_time": guest.end_time},
        seconds={
            "begin_duration": guest.begun_s,
            "end_duration": guest.ended_s,
            "restart_duration": guest.restart_s,
            "ready_duration": guest.ready_s,
        },
    )
    return message


def _set(message: Message, *, times: dict[str, datetime | None], seconds: dict[str, float | None]) -> None:
    """Set the fields that have a value."""
    for field, time in times.items():
        if time is not None:
            getattr(message, field).CopyFrom(timestamp(time))
    for field, value in seconds.items():
        if value is not None:
            getattr(message, field).CopyFrom(duration(value))
