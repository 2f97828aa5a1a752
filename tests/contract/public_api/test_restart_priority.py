"""The priority with which an instance is started again: given, changed, left alone, and refused when it is none."""

from google.protobuf.field_mask_pb2 import FieldMask
from tests.contract.public_api.calls import VM, launch, launched, refused
from tests.support.public import Face

from leeward.errors import InvalidArgument
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb


async def test_it_is_medium_unless_told_otherwise(stocked: Face) -> None:
    assert (await launched(stocked)).restart_priority == instance_pb2.RESTART_PRIORITY_MEDIUM
    other = await launched(stocked, "other", restart_priority=instance_pb2.RESTART_PRIORITY_HIGHEST)
    assert other.restart_priority == instance_pb2.RESTART_PRIORITY_HIGHEST


async def test_it_can_be_changed_alone(stocked: Face) -> None:
    await launched(stocked, labels={"a": "b"}, restart_on_failure=False)
    wanted = instance_pb2.Instance(name=VM, restart_priority=instance_pb2.RESTART_PRIORITY_LOW)
    for mask in (FieldMask(), FieldMask(paths=["restart_priority"])):
        changed = await stocked.instances.UpdateInstance(pb.UpdateInstanceRequest(instance=wanted, update_mask=mask))
        assert changed.restart_priority == instance_pb2.RESTART_PRIORITY_LOW
        assert dict(changed.labels) == {"a": "b"}
        assert not changed.restart_on_failure
    read = await stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM))
    assert read.restart_priority == instance_pb2.RESTART_PRIORITY_LOW


async def test_one_that_is_not_known_is_refused(stocked: Face) -> None:
    error = await refused(InvalidArgument, stocked.instances.CreateInstance(launch(restart_priority=99)))
    assert [each.field for each in error.fields] == ["instance.restart_priority"]
    await launched(stocked)
    wrong = pb.UpdateInstanceRequest(
        instance=instance_pb2.Instance(name=VM, restart_priority=99),  # type: ignore[arg-type]
        update_mask=FieldMask(paths=["restart_priority"]),
    )
    error = await refused(InvalidArgument, stocked.instances.UpdateInstance(wrong))
    assert "RESTART_PRIORITY_HIGHEST" in error.message
