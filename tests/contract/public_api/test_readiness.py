"""What tells that a restarted instance is ready: given, changed, taken back, and refused when it makes no sense."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from tests.contract.public_api.calls import VM, launch, launched, refused
from tests.support.public import Face

from leeward.errors import InvalidArgument
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1.instance_pb2 import Readiness

_PORT = Readiness(probe=Readiness.PROBE_TCP_PORT, host="10.0.0.5", port=5432, timeout=Duration(seconds=30))
_ONLY = FieldMask(paths=["readiness"])


async def test_it_is_kept_changed_and_taken_back(stocked: Face) -> None:
    assert not (await launched(stocked, "plain")).HasField("readiness")
    made = await launched(stocked, readiness=Readiness(probe=Readiness.PROBE_GUEST_AGENT), labels={"a": "b"})
    assert made.readiness == Readiness(probe=Readiness.PROBE_GUEST_AGENT, timeout=Duration(seconds=120))
    for mask in (FieldMask(), _ONLY):
        wanted = instance_pb2.Instance(name=VM, readiness=_PORT)
        changed = await stocked.instances.UpdateInstance(pb.UpdateInstanceRequest(instance=wanted, update_mask=mask))
        assert changed.readiness == _PORT
        assert dict(changed.labels) == {"a": "b"}
    without = pb.UpdateInstanceRequest(instance=instance_pb2.Instance(name=VM), update_mask=_ONLY)
    assert not (await stocked.instances.UpdateInstance(without)).HasField("readiness")


@pytest.mark.parametrize(
    ("readiness", "fields"),
    [
        (Readiness(), ["probe"]),
        (Readiness(probe=Readiness.PROBE_TCP_PORT), ["port", "host"]),
        (Readiness(probe=Readiness.PROBE_TCP_PORT, host="10.0.0.5;id", port=70_000), ["port", "host"]),
        (Readiness(probe=Readiness.PROBE_GUEST_AGENT, host="10.0.0.5", port=1), ["host", "port"]),
        (Readiness(probe=Readiness.PROBE_GUEST_AGENT, timeout=Duration(seconds=601)), ["timeout"]),
        (Readiness(probe=Readiness.PROBE_GUEST_AGENT, timeout=Duration()), ["timeout"]),
    ],
)
async def test_what_makes_no_sense_is_refused(stocked: Face, readiness: Readiness, fields: list[str]) -> None:
    wanted = [f"instance.readiness.{field}" for field in fields]
    error = await refused(InvalidArgument, stocked.instances.CreateInstance(launch(readiness=readiness)))
    assert [each.field for each in error.fields] == wanted
    await launched(stocked)
    change = instance_pb2.Instance(name=VM, readiness=readiness)
    request = pb.UpdateInstanceRequest(instance=change, update_mask=_ONLY)
    error = await refused(InvalidArgument, stocked.instances.UpdateInstance(request))
    assert [each.field for each in error.fields] == wanted
