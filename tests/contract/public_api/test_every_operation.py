"""Where each operation of the table leads, on simulated hosts, and what it answers."""

from datetime import timedelta
from typing import Any

from google.longrunning.operations_pb2 import Operation
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from tests.contract.public_api.calls import DEBIAN, VM, launched, refused
from tests.support.public import Face, PublicLab, add_flavor, image_spec

from leeward.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NodeUnfit, NotFound, WrongState
from leeward.v1 import image_pb2, instance_pb2
from leeward.v1 import image_service_pb2 as image_pb
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1 import node_service_pb2 as node_pb


async def done(face: Face, request: Message) -> Operation:
    """Do it, and wait for its end."""
    method = type(request).DESCRIPTOR.name.removesuffix("Request")
    ended = await face.ended(await getattr(face.instances, method)(request))
    assert not ended.HasField("error"), f"{method}: {ended.error}"
    return ended


async def after(face: Face, request: Message) -> instance_pb2.Instance:
    """The instance that an operation answers, which is also what there is then."""
    ended = await done(face, request)
    instance = instance_pb2.Instance()
    assert ended.response.Unpack(instance), ended
    assert instance.current_operation == ""
    assert instance == await face.instances.GetInstance(pb.GetInstanceRequest(name=instance.name))
    return instance


def state(instance: instance_pb2.Instance) -> str:
    return instance_pb2.Instance.State.Name(instance.state).removeprefix("STATE_")


async def test_processors_and_memory_stop_and_go_on(stocked: Face) -> None:
    made = await launched(stocked)
    for request, expected in [
        (pb.PauseInstanceRequest(name=VM), "PAUSED"),
        (pb.UnpauseInstanceRequest(name=VM), "ACTIVE"),
        (pb.SuspendInstanceRequest(name=VM), "SUSPENDED"),
        (pb.ResumeInstanceRequest(name=VM), "ACTIVE"),
        (pb.CrashDumpInstanceRequest(name=VM), "ACTIVE"),
    ]:
        now = await after(stocked, request)
        assert state(now) == expected
        assert (now.node, now.uid) == (made.node, made.uid)
    history = await stocked.instances.ListInstanceEvents(pb.ListInstanceEventsRequest(parent=VM))
    assert len(history.events) == 6
    assert all(event.steps and all(step.step and step.controller for step in event.steps) for event in history.events)


async def test_a_resize_is_kept_or_taken_back(stocked: Face) -> None:
    await add_flavor(stocked, "big", vcpus=2, memory_mib=1024)
    await launched(stocked)
    resized = await after(
        stocked, pb.ResizeInstanceRequest(name=VM, flavor="flavors/big", auto_confirm_after=Duration(seconds=3600))
    )
    assert (state(resized), resized.flavor, resized.resources.vcpus) == ("RESIZED", "flavors/big", 2)
    assert resized.resize.flavor == "flavors/small"
    assert resized.resize.confirm_time.seconds > resized.update_time.seconds
    back = await after(stocked, pb.RevertResizeRequest(name=VM))
    assert (state(back), back.flavor, back.resources.memory_mib) == ("ACTIVE", "flavors/small", 512)
    assert not back.HasField("resize")
    again = await after(stocked, pb.ResizeInstanceRequest(name=VM, flavor="flavors/big"))
    assert not again.resize.HasField("confirm_time")
    kept = await after(stocked, pb.ConfirmResizeRequest(name=VM))
    assert (state(kept), kept.flavor) == ("ACTIVE", "flavors/big")

    same = pb.ResizeInstanceRequest(name=VM, flavor="flavors/big")
    error = await refused(InvalidArgument, stocked.instances.ResizeInstance(same))
    assert [each.field for each in error.fields] == ["flavor"]
    nowhere = pb.ResizeInstanceRequest(name=VM, flavor="flavors/gone")
    await refused(NotFound, stocked.instances.ResizeInstance(nowhere))


async def test_an_image_is_made_of_an_instance(stocked: Face) -> None:
    await launched(stocked)
    request = pb.SnapshotInstanceRequest(name=VM, image_id="golden", properties={"os": "debian"})
    ended = await done(stocked, request)
    image = image_pb2.Image()
    assert ended.response.Unpack(image), ended
    assert image == await stocked.images.GetImage(image_pb.GetImageRequest(name="projects/p/images/golden"))
    assert dict(image.properties) == {
        "os": "debian",
        "source_instance": VM,
        "machine": "q35",
        "firmware": "bios",
    }
    error = await refused(AlreadyExists, stocked.instances.SnapshotInstance(request))
    assert error.resource == "projects/p/images/golden"
    await launched(stocked, "copy", image=image.name)


async def test_a_shelved_instance_is_an_image_until_it_comes_back(stocked: Face) -> None:
    await stocked.upload(image_spec("vm-shelved"))
    await launched(stocked)
    kept = await after(stocked, pb.ShelveInstanceRequest(name=VM, offload_delay=Duration(seconds=3600)))
    assert (state(kept), kept.shelved_image) == ("SHELVED", "projects/p/images/vm-shelved-2"), "a name that is free"
    assert kept.node
    assert kept.HasField("offload_time")
    there = await after(stocked, pb.UnshelveInstanceRequest(name=VM))
    assert (state(there), there.node, there.shelved_image) == ("ACTIVE", kept.node, "")
    gone = await after(stocked, pb.ShelveInstanceRequest(name=VM))
    assert (state(gone), gone.node, gone.pool) == ("SHELVED_OFFLOADED", "", "")
    in_use = image_pb.DeleteImageRequest(name=gone.shelved_image)
    assert (await refused(FailedPrecondition, stocked.images.DeleteImage(in_use))).specific_reason == "IMAGE_IN_USE"
    error = await refused(FailedPrecondition, stocked.instances.GetConsoleLog(pb.GetConsoleLogRequest(name=VM)))
    assert error.specific_reason == "NO_NODE"
    back = await after(stocked, pb.UnshelveInstanceRequest(name=VM, node="nodes/host-b"))
    assert (state(back), back.node) == ("ACTIVE", "nodes/host-b")
    await refused(NotFound, stocked.images.GetImage(image_pb.GetImageRequest(name=gone.shelved_image)))


async def test_a_rescue_leaves_the_disk_alone_and_a_rebuild_does_not(stocked: Face) -> None:
    await stocked.upload(image_spec("rescue-disk", properties={"firmware": "uefi"}))
    await launched(stocked)
    own = await after(stocked, pb.RescueInstanceRequest(name=VM))
    assert (state(own), own.rescue_image) == ("RESCUED", DEBIAN)
    await after(stocked, pb.UnrescueInstanceRequest(name=VM))
    other = await after(stocked, pb.RescueInstanceRequest(name=VM, image="projects/p/images/rescue-disk"))
    assert other.rescue_image == "projects/p/images/rescue-disk"
    in_use = image_pb.DeleteImageRequest(name=other.rescue_image)
    await refused(FailedPrecondition, stocked.images.DeleteImage(in_use))
    back = await after(stocked, pb.UnrescueInstanceRequest(name=VM))
    assert (state(back), back.rescue_image) == ("ACTIVE", "")

    unfit = pb.RebuildInstanceRequest(name=VM, image="projects/p/images/rescue-disk")
    error = await refused(InvalidArgument, stocked.instances.RebuildInstance(unfit))
    assert "is for uefi" in error.fields[0].description
    await stocked.upload(image_spec("newer"))
    rebuilt = await after(stocked, pb.RebuildInstanceRequest(name=VM, image="projects/p/images/newer"))
    assert (state(rebuilt), rebuilt.image, rebuilt.uid) == ("ACTIVE", "projects/p/images/newer", back.uid)
    stopped = pb.StopInstanceRequest(name=VM, grace_period=Duration())
    await done(stocked, stopped)
    assert state(await after(stocked, pb.RebuildInstanceRequest(name=VM))) == "STOPPED"


async def test_a_named_node_is_the_one_or_it_is_refused_at_once(stocked: Face) -> None:
    made = await launched(stocked, node="nodes/host-a")
    calls: list[tuple[Any, type[Message]]] = [
        (stocked.instances.MigrateInstance, pb.MigrateInstanceRequest),
        (stocked.instances.LiveMigrateInstance, pb.LiveMigrateInstanceRequest),
    ]
    for call, kind in calls:
        there = await refused(NodeUnfit, call(kind(name=VM, node="nodes/host-a")))
        assert "is on it already" in there.message
        ghost = await refused(NodeUnfit, call(kind(name=VM, node="nodes/host-z")))
        assert "does not exist" in ghost.message
    await stocked.nodes.CordonNode(node_pb.CordonNodeRequest(name="nodes/host-b", reason="disks"))
    for call, kind in calls:
        error = await refused(NodeUnfit, call(kind(name=VM, node="nodes/host-b")))
        assert [each.description for each in error.violations] == ["it is cordoned"]
    await stocked.nodes.UncordonNode(node_pb.UncordonNodeRequest(name="nodes/host-b"))
    still = await stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM))
    assert still == made, "it was not touched"
    moved = await after(stocked, pb.MigrateInstanceRequest(name=VM, node="nodes/host-b", grace_period=Duration()))
    assert (state(moved), moved.node) == ("ACTIVE", "nodes/host-b")
    escalated = pb.LiveMigrateInstanceRequest(
        name=VM, node="nodes/host-a", escalation=pb.MIGRATION_ESCALATION_POST_COPY
    )
    assert (await after(stocked, escalated)).node == "nodes/host-a"


async def test_what_is_deleted_can_be_brought_back_for_a_while(retaining: Face) -> None:
    made = await launched(retaining)
    await done(retaining, pb.DeleteInstanceRequest(name=VM))
    deleted = await retaining.instances.GetInstance(pb.GetInstanceRequest(name=VM))
    assert state(deleted) == "SOFT_DELETED"
    kept = deleted.expire_time.ToDatetime() - deleted.update_time.ToDatetime()
    assert timedelta(minutes=59) < kept <= timedelta(hours=1)
    await refused(WrongState, retaining.instances.StartInstance(pb.StartInstanceRequest(name=VM)))
    back = await after(retaining, pb.UndeleteInstanceRequest(name=VM))
    assert (state(back), back.uid, back.node) == ("ACTIVE", made.uid, made.node)
    assert not back.HasField("expire_time")
    await done(retaining, pb.DeleteInstanceRequest(name=VM))
    await done(retaining, pb.DeleteInstanceRequest(name=VM))
    await refused(NotFound, retaining.instances.GetInstance(pb.GetInstanceRequest(name=VM)))
    await launched(retaining)
    await done(retaining, pb.DeleteInstanceRequest(name=VM, purge=True))
    await refused(NotFound, retaining.instances.GetInstance(pb.GetInstanceRequest(name=VM)))


async def test_a_console_goes_both_ways_and_one_at_a_time(lab: PublicLab, stocked: Face) -> None:
    await launched(stocked)

    async def opening(*more: pb.AttachConsoleRequest, take_over: bool = False) -> Any:
        yield pb.AttachConsoleRequest(name=VM, take_over=take_over)
        for each in more:
            yield each

    call = stocked.instances.AttachConsole(opening())
    assert (await call.read()).output == b"", "it is attached"
    busy = stocked.instances.AttachConsole(opening())
    error = await refused(FailedPrecondition, busy.read())
    assert error.specific_reason == "CONSOLE_IN_USE"
    other = stocked.instances.AttachConsole(opening(pb.AttachConsoleRequest(input=b"hello\n"), take_over=True))
    seen = b""
    while b"hello" not in seen:
        seen += (await other.read()).output
    wrong = stocked.instances.AttachConsole(opening(pb.AttachConsoleRequest(name=VM), take_over=True))
    await wrong.read()
    refusal = await refused(InvalidArgument, wrong.read())
    assert [each.field for each in refusal.fields] == ["input"]
