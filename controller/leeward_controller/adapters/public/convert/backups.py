"""Backup policies."""

from leeward.v1 import backup_policy_pb2 as pb
from leeward.v1 import backup_policy_service_pb2 as service_pb
from leeward_controller.adapters.public.convert.values import masked, timestamp
from leeward_controller.services.backup_policies import CHANGEABLE, NewBackupPolicy, PolicySpec, ShownPolicy


def policy_to_wire(shown: ShownPolicy) -> pb.BackupPolicy:
    """A backup policy as clients see it."""
    policy, run = shown.stored.value, shown.run
    message = pb.BackupPolicy(
        name=policy.name,
        uid=policy.uid,
        schedule=policy.schedule,
        time_zone=policy.time_zone,
        keep_count=policy.keep_count,
        instances=policy.instances,
        paused=policy.paused,
        create_time=timestamp(policy.create_time),
        etag=shown.stored.etag,
    )
    if run is not None:
        message.last_run_time.CopyFrom(timestamp(run.start_time))
        message.failures.extend(pb.BackupPolicy.Failure(instance=f.instance, reason=f.reason) for f in run.failed)
    if shown.next_run_time is not None:
        message.next_run_time.CopyFrom(timestamp(shown.next_run_time))
    return message


def new_policy(request: service_pb.CreateBackupPolicyRequest) -> NewBackupPolicy:
    """A backup policy to make."""
    return NewBackupPolicy(
        parent=request.parent,
        policy_id=request.backup_policy_id,
        spec=spec_of(request.backup_policy),
        request_id=request.request_id,
        validate_only=request.validate_only,
    )


def spec_of(wire: pb.BackupPolicy) -> PolicySpec:
    """What a client says of a backup policy."""
    return PolicySpec(
        schedule=wire.schedule,
        time_zone=wire.time_zone,
        keep_count=wire.keep_count,
        instances=tuple(wire.instances),
        paused=wire.paused,
    )


def fields_of(request: service_pb.UpdateBackupPolicyRequest) -> frozenset[str]:
    """Which fields to change; without a mask those that are set. Raises InvalidArgument."""
    given = [name for name in CHANGEABLE if getattr(request.backup_policy, name)]
    return masked(request.update_mask, CHANGEABLE, given)
