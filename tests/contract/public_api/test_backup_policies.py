"""Backup policies through the public API, and through the command line."""

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from tests.contract.public_api.calls import VM, launched, refused
from tests.support.public import Face, PublicLab

from leeward.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, PermissionDenied
from leeward.identity import Principal, Role
from leeward.v1 import admin_service_pb2, admin_service_pb2_grpc, backup_policy_service_pb2_grpc
from leeward.v1 import backup_policy_pb2 as policy_pb
from leeward.v1 import backup_policy_service_pb2 as pb

NIGHTLY = "projects/p/backupPolicies/nightly"


def policies(face: Face) -> Any:
    return backup_policy_service_pb2_grpc.BackupPolicyServiceStub(face.channel)


def admin(face: Face) -> Any:
    return admin_service_pb2_grpc.AdminServiceStub(face.channel)


def new(policy_id: str = "nightly", **changes: Any) -> pb.CreateBackupPolicyRequest:
    outer = {key: changes.pop(key) for key in ("parent", "request_id", "validate_only") if key in changes}
    outer.setdefault("parent", "projects/p")
    fields: dict[str, Any] = {"schedule": "0 2 * * *", "keep_count": 7, "instances": [VM]}
    policy = policy_pb.BackupPolicy(**(fields | changes))
    return pb.CreateBackupPolicyRequest(backup_policy_id=policy_id, backup_policy=policy, **outer)


async def test_the_life_of_a_backup_policy(stocked: Face) -> None:
    await launched(stocked)
    api = policies(stocked)
    checked = await api.CreateBackupPolicy(new(validate_only=True))
    assert checked.name == NIGHTLY
    assert list((await api.ListBackupPolicies(pb.ListBackupPoliciesRequest(parent="projects/p"))).backup_policies) == []

    made = await api.CreateBackupPolicy(new(time_zone="Europe/Berlin", request_id="once"))
    assert await api.CreateBackupPolicy(new(time_zone="Europe/Berlin", request_id="once")) == made
    await refused(AlreadyExists, api.CreateBackupPolicy(new()))
    assert (made.name, made.keep_count, list(made.instances)) == (NIGHTLY, 7, [VM])
    assert made.HasField("next_run_time")
    assert not made.HasField("last_run_time")
    assert made.next_run_time.ToDatetime().minute == 0
    assert await api.GetBackupPolicy(pb.GetBackupPolicyRequest(name=NIGHTLY)) == made

    other = await api.CreateBackupPolicy(new("hourly", schedule="0 * * * *", paused=True))
    assert not other.HasField("next_run_time")
    page = await api.ListBackupPolicies(pb.ListBackupPoliciesRequest(parent="projects/-", page_size=1))
    assert [each.name for each in page.backup_policies] == [other.name]
    page = await api.ListBackupPolicies(
        pb.ListBackupPoliciesRequest(parent="projects/-", page_size=1, page_token=page.next_page_token)
    )
    assert [each.name for each in page.backup_policies] == [NIGHTLY]
    assert not page.next_page_token

    change = policy_pb.BackupPolicy(name=NIGHTLY, keep_count=2, schedule="1 2 * * *", etag=made.etag)
    only_keep = pb.UpdateBackupPolicyRequest(backup_policy=change, update_mask=FieldMask(paths=["keep_count"]))
    changed = await api.UpdateBackupPolicy(only_keep)
    assert (changed.keep_count, changed.schedule) == (2, "0 2 * * *")
    error = await refused(Conflict, api.UpdateBackupPolicy(only_keep))
    assert error.metadata["etag"] == changed.etag
    await refused(Conflict, api.DeleteBackupPolicy(pb.DeleteBackupPolicyRequest(name=NIGHTLY, etag=made.etag)))
    await api.DeleteBackupPolicy(pb.DeleteBackupPolicyRequest(name=NIGHTLY, etag=changed.etag))
    await refused(NotFound, api.GetBackupPolicy(pb.GetBackupPolicyRequest(name=NIGHTLY)))


async def test_every_wrong_field_is_named(stocked: Face) -> None:
    await launched(stocked)
    api = policies(stocked)
    wrong = new(
        "-",
        parent="p",
        schedule="0 2 * *",
        time_zone="Mars/Olympus",
        keep_count=366,
        instances=[VM, VM, "vm"],
        request_id="no spaces",
    )
    error = await refused(InvalidArgument, api.CreateBackupPolicy(wrong))
    assert {each.field for each in error.fields} == {
        "parent",
        "backup_policy_id",
        "backup_policy.schedule",
        "backup_policy.time_zone",
        "backup_policy.keep_count",
        "backup_policy.instances",
        "backup_policy.instances[2]",
        "request_id",
    }
    for instances, field in (
        (["projects/q/instances/vm"], "backup_policy.instances[0]"),
        (["projects/p/instances/other"], "backup_policy.instances"),
        ([], "backup_policy.instances"),
    ):
        error = await refused(InvalidArgument, api.CreateBackupPolicy(new(instances=instances)))
        assert [each.field for each in error.fields] == [field]
    await api.CreateBackupPolicy(new())
    bad_mask = pb.UpdateBackupPolicyRequest(
        backup_policy=policy_pb.BackupPolicy(name=NIGHTLY), update_mask=FieldMask(paths=["uid"])
    )
    error = await refused(InvalidArgument, api.UpdateBackupPolicy(bad_mask))
    assert [each.field for each in error.fields] == ["update_mask"]


async def test_only_admins_audit(lab: PublicLab) -> None:
    face = await lab.add_controller(principal=Principal(Role.CLIENT, "alice"))
    await refused(PermissionDenied, admin(face).AuditCluster(admin_service_pb2.AuditClusterRequest()))
