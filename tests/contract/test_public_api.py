"""What clients of the public API are promised: against the real server, real controllers and simulated hosts."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from tests.support.public import ADMIN, IMAGE, SHA256, WAIT_S, Face, PublicLab, add_flavor, image_spec

from leeward.errors import (
    AlreadyExists,
    Compacted,
    Conflict,
    Draining,
    FailedPrecondition,
    ImageRefused,
    InvalidArgument,
    LeewardError,
    NodeUnfit,
    NoNodeFits,
    NotFound,
    OperationRunning,
    PermissionDenied,
    Unimplemented,
    WrongState,
)
from leeward.identity import Principal, Role
from leeward.rpc.client_errors import rpc_errors
from leeward.rpc.client_streams import stream_errors
from leeward.v1 import flavor_service_pb2 as flavor_pb
from leeward.v1 import image_pb2, instance_pb2, operation_pb2, watch_pb2
from leeward.v1 import image_service_pb2 as image_pb
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1 import node_service_pb2 as node_pb
from leeward.v1 import operation_service_pb2 as operation_pb
from leeward_controller.adapters.public.unimplemented import UNIMPLEMENTED

E = TypeVar("E", bound=LeewardError)

VM = "projects/p/instances/vm"
DEBIAN = "projects/p/images/debian"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PublicLab]:
    async with PublicLab(files=tmp_path) as started:
        yield started


@pytest.fixture
async def face(lab: PublicLab) -> Face:
    return await lab.add_controller()


@pytest.fixture
async def stocked(face: Face) -> Face:
    """With an image and a flavor to make instances of."""
    await add_flavor(face)
    await face.upload()
    return face


async def refused(kind: type[E], call: Awaitable[Any]) -> E:
    """The error that a call must end with."""
    with pytest.raises(kind) as caught, rpc_errors("the controller"):
        await call
    assert type(caught.value) is kind
    return caught.value


def launch(instance_id: str = "vm", **changes: Any) -> pb.CreateInstanceRequest:
    fields: dict[str, Any] = {"flavor": "flavors/small", "image": DEBIAN}
    outer = {key: changes.pop(key) for key in ("parent", "node", "request_id", "validate_only") if key in changes}
    outer.setdefault("parent", "projects/p")
    return pb.CreateInstanceRequest(
        instance_id=instance_id, instance=instance_pb2.Instance(**(fields | changes)), **outer
    )


async def launched(face: Face, instance_id: str = "vm", **changes: Any) -> instance_pb2.Instance:
    operation = await face.ended(await face.instances.CreateInstance(launch(instance_id, **changes)))
    instance = instance_pb2.Instance()
    assert operation.response.Unpack(instance), operation
    return instance


BAD: list[tuple[str, str, Any, set[str]]] = [
    (
        "instances",
        "CreateInstance",
        launch(
            "Big_VM",
            parent="project/p",
            flavor="small",
            image="debian",
            node="host a",
            request_id="no spaces",
            labels={"": "x", "k" * 64: "v" * 257},
            network_interfaces=[instance_pb2.NetworkInterface(bridge="no/slash")],
            cloud_init=instance_pb2.CloudInit(user_data=b"#!"),
        ),
        {
            "parent",
            "instance_id",
            "instance.flavor",
            "instance.image",
            "node",
            "request_id",
            "instance.labels[]",
            f"instance.labels[{'k' * 64}]",
            "instance.network_interfaces[0].bridge",
            "instance.cloud_init",
        },
    ),
    ("instances", "GetInstance", pb.GetInstanceRequest(name="vm"), {"name"}),
    (
        "instances",
        "ListInstances",
        pb.ListInstancesRequest(parent="p", page_size=-1, filter="colour = blue"),
        {"parent", "page_size", "filter"},
    ),
    ("instances", "ListInstances", pb.ListInstancesRequest(parent="projects/p", filter="state ="), {"filter"}),
    ("instances", "ListInstances", pb.ListInstancesRequest(parent="projects/p", page_token="bm8"), {"page_token"}),
    (
        "instances",
        "UpdateInstance",
        pb.UpdateInstanceRequest(
            instance=instance_pb2.Instance(name=VM), update_mask=FieldMask(paths=["state", "labels", "uid"])
        ),
        {"update_mask"},
    ),
    (
        "instances",
        "StopInstance",
        pb.StopInstanceRequest(name="x", grace_period=Duration(seconds=3601)),
        {"name", "grace_period"},
    ),
    ("instances", "RebootInstance", pb.RebootInstanceRequest(name=VM, mode=7), {"mode"}),  # type: ignore[arg-type]
    (
        "instances",
        "LiveMigrateInstance",
        pb.LiveMigrateInstanceRequest(
            name=VM,
            node="host-b",
            max_bandwidth_mib_per_second=-1,
            max_downtime=Duration(seconds=61),
            timeout=Duration(seconds=0),
        ),
        {"node", "max_bandwidth_mib_per_second", "max_downtime", "timeout"},
    ),
    (
        "instances",
        "EvacuateInstance",
        pb.EvacuateInstanceRequest(name=VM, allow_rebuild=True),
        {"allow_rebuild"},
    ),
    ("instances", "GetConsoleLog", pb.GetConsoleLogRequest(name=VM, limit_bytes=2_000_000), {"limit_bytes"}),
    (
        "instances",
        "ListInstanceEvents",
        pb.ListInstanceEventsRequest(parent="vm", page_size=-5),
        {"parent", "page_size"},
    ),
    (
        "flavors",
        "CreateFlavor",
        flavor_pb.CreateFlavorRequest(flavor_id="-", request_id="ü"),
        {"flavor_id", "flavor.vcpus", "flavor.memory_mib", "flavor.disk_gib", "request_id"},
    ),
    ("images", "GetImage", image_pb.GetImageRequest(name="projects/p/images/Debian"), {"name"}),
    ("nodes", "GetNode", node_pb.GetNodeRequest(name="host-a"), {"name"}),
    (
        "nodes",
        "AttestNodeFenced",
        node_pb.AttestNodeFencedRequest(name="nodes/host-a", evidence=" "),
        {"boot_id", "evidence"},
    ),
    ("nodes", "CordonNode", node_pb.CordonNodeRequest(name="nodes/host-a", reason="x" * 1025), {"reason"}),
    ("operations", "GetOperation", operations_pb2.GetOperationRequest(name="operations/1"), {"name"}),
    ("operations", "ListOperations", operations_pb2.ListOperationsRequest(name="projects/p"), {"name"}),
]


async def test_bad_input_names_every_wrong_field(face: Face) -> None:
    for service, method, request, fields in BAD:
        error = await refused(InvalidArgument, getattr(getattr(face, service), method)(request))
        assert {violation.field for violation in error.fields} == fields, method
        assert error.specific_reason == "INVALID_ARGUMENT"
        assert all(violation.description for violation in error.fields)


async def test_what_is_not_there_is_named(stocked: Face) -> None:
    ghost = "projects/p/instances/ghost"
    for call, name in [
        (stocked.instances.GetInstance(pb.GetInstanceRequest(name=ghost)), ghost),
        (stocked.instances.StartInstance(pb.StartInstanceRequest(name=ghost)), ghost),
        (stocked.instances.CreateInstance(launch(flavor="flavors/huge")), "flavors/huge"),
        (stocked.instances.CreateInstance(launch(image="projects/p/images/no")), "projects/p/images/no"),
        (stocked.nodes.GetNode(node_pb.GetNodeRequest(name="nodes/host-z")), "nodes/host-z"),
    ]:
        error = await refused(NotFound, call)
        assert error.resource == name


async def test_an_instance_lives_from_launch_to_delete(stocked: Face) -> None:
    made = await launched(
        stocked,
        labels={"tier": "web"},
        network_interfaces=[instance_pb2.NetworkInterface(bridge="br0"), instance_pb2.NetworkInterface()],
    )
    assert made.state == instance_pb2.Instance.STATE_ACTIVE
    assert made.node in ("nodes/host-a", "nodes/host-b")
    assert made.restart_on_failure
    assert made.current_operation == ""
    macs = [nic.mac_address for nic in made.network_interfaces]
    assert len(set(macs)) == 2
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "unicast and locally administered"

    stop = pb.StopInstanceRequest(name=VM, grace_period=Duration(seconds=5))
    stopped = await stocked.ended(await stocked.instances.StopInstance(stop))
    assert not stopped.HasField("error"), stopped
    error = await refused(WrongState, stocked.instances.StopInstance(stop))
    assert error.metadata == {"current_state": "STOPPED", "allowed_states": "ACTIVE, ERROR, PAUSED"}
    for method, request in [
        ("StartInstance", pb.StartInstanceRequest(name=VM)),
        ("RebootInstance", pb.RebootInstanceRequest(name=VM, mode=pb.REBOOT_MODE_HARD)),
        ("LiveMigrateInstance", pb.LiveMigrateInstanceRequest(name=VM)),
    ]:
        ended = await stocked.ended(await getattr(stocked.instances, method)(request))
        assert not ended.HasField("error"), ended
    moved = await stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM))
    assert moved.node != made.node
    assert [nic.mac_address for nic in moved.network_interfaces] == macs

    page = await stocked.instances.ListInstanceEvents(pb.ListInstanceEventsRequest(parent=VM, page_size=3))
    rest = pb.ListInstanceEventsRequest(parent=VM, page_size=3, page_token=page.next_page_token)
    events = [*page.events, *(await stocked.instances.ListInstanceEvents(rest)).events]
    types = operation_pb2.OperationType
    assert [types.Name(event.type) for event in events] == [
        f"OPERATION_TYPE_{kind}" for kind in ("CREATE", "STOP", "START", "REBOOT", "LIVE_MIGRATE")
    ]
    assert {event.requested_by for event in events} == {str(ADMIN)}

    gone = await stocked.ended(await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name=VM)))
    assert not gone.HasField("error"), gone
    await refused(NotFound, stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM)))


async def test_the_same_request_id_is_the_same_operation(stocked: Face) -> None:
    first = await stocked.instances.CreateInstance(launch(request_id="once"))
    again = await stocked.instances.CreateInstance(launch(request_id="once"))
    assert again.name == first.name
    await stocked.ended(first)
    error = await refused(AlreadyExists, stocked.instances.CreateInstance(launch(request_id="twice")))
    assert error.resource == VM
    error_ = await refused(InvalidArgument, stocked.instances.CreateInstance(launch("other", request_id="once")))
    assert [violation.field for violation in error_.fields] == ["request_id"]

    delete = pb.DeleteInstanceRequest(name=VM, request_id="gone")
    deleted = await stocked.ended(await stocked.instances.DeleteInstance(delete))
    repeated = await stocked.instances.DeleteInstance(delete)
    assert repeated.name == deleted.name, "although the instance is no more"
    assert repeated.done

    flavor = flavor_pb.CreateFlavorRequest(flavor_id="f", request_id="f1")
    flavor.flavor.vcpus, flavor.flavor.memory_mib, flavor.flavor.disk_gib = 1, 512, 1
    made = await stocked.flavors.CreateFlavor(flavor)
    assert (await stocked.flavors.CreateFlavor(flavor)) == made
    flavor.flavor.vcpus = 2
    await refused(AlreadyExists, stocked.flavors.CreateFlavor(flavor))


async def test_what_fits_nowhere_is_refused_with_a_reason_for_each_node(stocked: Face) -> None:
    await add_flavor(stocked, "huge", vcpus=64)
    for request in (launch(flavor="flavors/huge"), launch(flavor="flavors/huge", validate_only=True)):
        error = await refused(NoNodeFits, stocked.instances.CreateInstance(request))
        assert [violation.subject for violation in error.violations] == ["nodes/host-a", "nodes/host-b"]
        assert all("8 vCPUs, 64 are asked for" in violation.description for violation in error.violations)
    await refused(NotFound, stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM)))
    await stocked.nodes.CordonNode(node_pb.CordonNodeRequest(name="nodes/host-a", reason="disks"))
    named = await refused(NodeUnfit, stocked.instances.CreateInstance(launch(node="nodes/host-a")))
    assert [violation.description for violation in named.violations] == ["it is cordoned"]


async def test_validate_only_changes_nothing(stocked: Face) -> None:
    checked = await stocked.instances.CreateInstance(launch(validate_only=True))
    assert checked.name == ""
    assert not checked.done
    await refused(NotFound, stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM)))
    await launched(stocked)
    await refused(AlreadyExists, stocked.instances.CreateInstance(launch(validate_only=True)))
    await refused(WrongState, stocked.instances.StartInstance(pb.StartInstanceRequest(name=VM, validate_only=True)))
    await stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM, validate_only=True))
    running = await stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM))
    assert running.state == instance_pb2.Instance.STATE_ACTIVE
    assert running.current_operation == ""


async def test_an_etag_is_held_to(stocked: Face) -> None:
    made = await launched(stocked)
    update = pb.UpdateInstanceRequest(
        instance=instance_pb2.Instance(name=VM, labels={"a": "b"}, restart_on_failure=False, etag=made.etag),
        update_mask=FieldMask(paths=["labels"]),
    )
    changed = await stocked.instances.UpdateInstance(update)
    assert dict(changed.labels) == {"a": "b"}
    assert changed.restart_on_failure, "the mask left it out"
    assert changed.etag != made.etag
    stale = [
        stocked.instances.UpdateInstance(update),
        stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM, etag=made.etag)),
        stocked.flavors.DeleteFlavor(flavor_pb.DeleteFlavorRequest(name="flavors/small", etag="1")),
        stocked.nodes.CordonNode(node_pb.CordonNodeRequest(name="nodes/host-a", etag="1")),
    ]
    for call in stale:
        error = await refused(Conflict, call)
        assert error.specific_reason == "ETAG_MISMATCH"
        assert not error.retriable
    await stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM, etag=changed.etag))


async def test_a_second_operation_is_refused_by_name_and_delete_interrupts(stocked: Face) -> None:
    await launched(stocked)
    stop = await stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM))
    error = await refused(OperationRunning, stocked.instances.RebootInstance(pb.RebootInstanceRequest(name=VM)))
    assert error.metadata["operation"] == stop.name
    delete = await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name=VM))
    assert not (await stocked.ended(delete)).HasField("error")
    assert (await stocked.ended(stop)).done
    running = await stocked.operations.ListOperations(operations_pb2.ListOperationsRequest(filter="done = false"))
    assert list(running.operations) == []
    await stocked.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=stop.name))
    await refused(NotFound, stocked.operations.GetOperation(operations_pb2.GetOperationRequest(name=stop.name)))


async def test_pages_are_of_one_moment_and_tokens_belong_to_their_list(lab: PublicLab, stocked: Face) -> None:
    for index in range(5):
        await add_flavor(stocked, f"f{index}")
    seen = []
    request = flavor_pb.ListFlavorsRequest(page_size=2)
    page = await stocked.flavors.ListFlavors(request)
    await add_flavor(stocked, "f11")
    await stocked.flavors.DeleteFlavor(flavor_pb.DeleteFlavorRequest(name="flavors/f4"))
    while True:
        seen += [flavor.name for flavor in page.flavors]
        if not page.next_page_token:
            break
        page = await stocked.flavors.ListFlavors(
            flavor_pb.ListFlavorsRequest(page_size=2, page_token=page.next_page_token)
        )
    assert seen == [f"flavors/{name}" for name in ("f0", "f1", "f2", "f3", "f4", "small")]

    token = (await stocked.flavors.ListFlavors(request)).next_page_token
    other = node_pb.ListNodesRequest(page_token=token)
    error = await refused(InvalidArgument, stocked.nodes.ListNodes(other))
    assert [violation.field for violation in error.fields] == ["page_token"]
    now = (await stocked.flavors.ListFlavors(request)).revision
    await add_flavor(stocked, "f5")
    await lab.cluster.store.compact(now + 1)
    late = flavor_pb.ListFlavorsRequest(page_size=2, page_token=token)
    error = await refused(InvalidArgument, stocked.flavors.ListFlavors(late))
    assert error.specific_reason == "PAGE_TOKEN_EXPIRED"


async def test_filters(stocked: Face) -> None:
    await launched(stocked, "a", labels={"tier": "web"})
    await launched(stocked, "b", labels={"tier": "db"})
    for filter_, names in [
        ("labels.tier = web", ["a"]),
        ('state = ACTIVE AND labels.tier != "web"', ["b"]),
        ("state = STOPPED", []),
        ("flavor = flavors/small", ["a", "b"]),
    ]:
        request = pb.ListInstancesRequest(parent="projects/-", filter=filter_)
        found = (await stocked.instances.ListInstances(request)).instances
        assert [instance.name.split("/")[-1] for instance in found] == names, filter_


async def test_a_watch_resumes_without_missing_or_repeating(lab: PublicLab, stocked: Face) -> None:
    await launched(stocked, "a")
    kinds = watch_pb2.WatchEventType
    seen: list[tuple[str, str]] = []
    revision = 0
    async with asyncio.timeout(WAIT_S):
        call = stocked.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p"))
        async for event in call:
            seen.append((kinds.Name(event.type), event.instance.name))
            if event.type == watch_pb2.WATCH_EVENT_TYPE_BOOKMARK:
                revision = event.revision
                break
            assert event.revision == 0, "a snapshot cannot be resumed half-way"
        call.cancel()
    assert seen == [("WATCH_EVENT_TYPE_ADDED", "projects/p/instances/a"), ("WATCH_EVENT_TYPE_BOOKMARK", "")]

    await launched(stocked, "b")
    await stocked.ended(await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name="projects/p/instances/a")))
    whole = await _watched(stocked, revision, until="projects/p/instances/a")
    assert whole[0][:2] == (watch_pb2.WATCH_EVENT_TYPE_ADDED, "projects/p/instances/b")
    cut = len(whole) // 2
    resumed = await _watched(stocked, whole[cut][2], until="projects/p/instances/a")
    assert whole[: cut + 1] + resumed == whole


async def _watched(face: Face, revision: int, *, until: str) -> list[tuple[int, str, int]]:
    """Changes since a revision until an instance is removed, bookmarks left out."""
    events = []
    async with asyncio.timeout(WAIT_S):
        call = face.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p", revision=revision))
        async for event in call:
            if event.type != watch_pb2.WATCH_EVENT_TYPE_BOOKMARK:
                events.append((event.type, event.instance.name, event.revision))
            if event.type == watch_pb2.WATCH_EVENT_TYPE_REMOVED and event.instance.name == until:
                break
        call.cancel()
    return events


async def test_a_watch_that_cannot_resume_says_where_to_begin(lab: PublicLab, stocked: Face) -> None:
    listed = await stocked.instances.ListInstances(pb.ListInstancesRequest(parent="projects/p"))
    await add_flavor(stocked, "x")
    await add_flavor(stocked, "y")
    now = (await stocked.instances.ListInstances(pb.ListInstancesRequest(parent="projects/p"))).revision
    await lab.cluster.store.compact(now)
    request = pb.WatchInstancesRequest(parent="projects/p", revision=listed.revision)
    error = await refused(Compacted, stocked.instances.WatchInstances(request).read())
    assert error.revision == now
    for revision in (now + 1_000_000, -1):
        request = pb.WatchInstancesRequest(parent="projects/p", revision=revision)
        wrong = await refused(InvalidArgument, stocked.instances.WatchInstances(request).read())
        assert [violation.field for violation in wrong.fields] == ["revision"]


async def test_a_stopping_server_tells_watchers_where_to_resume(stocked: Face) -> None:
    async with asyncio.timeout(WAIT_S):
        call = stocked.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p"))
        bookmark = await call.read()
        stopping = asyncio.ensure_future(stocked.server.stop(WAIT_S))
        error = await refused(Draining, _drained(call))
        assert int(error.metadata["revision"]) >= bookmark.revision
        assert error.retriable
        await stopping


async def _drained(call: Any) -> None:
    while True:
        await call.read()


async def test_an_operation_is_watched_to_its_end_through_either_controller(lab: PublicLab, stocked: Face) -> None:
    other = await lab.add_controller(principal=ADMIN)
    await add_flavor(stocked, "big", memory_mib=4096)
    await launched(stocked, flavor="flavors/big")
    migration = await stocked.instances.LiveMigrateInstance(
        pb.LiveMigrateInstanceRequest(name=VM, max_bandwidth_mib_per_second=2048)
    )
    async with asyncio.timeout(WAIT_S):
        here, there = await asyncio.gather(_moments(stocked, migration.name), _moments(other, migration.name))
    for moments in (here, there):
        last = moments[-1]
        assert last.operation.done
        assert last.metadata.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED
        assert last.metadata.percent == 100
        assert [step.step for step in last.metadata.steps] == ["place", "migrate", "settle"]
        instance = instance_pb2.Instance()
        assert last.operation.response.Unpack(instance)
        assert instance.node == last.metadata.target_node
        copying = [m for m in moments if m.metadata.migration.phase == operation_pb2.MIGRATION_PHASE_COPYING]
        assert copying, "the progress comes through the one that drives it"
        percents = [m.metadata.percent for m in moments]
        assert percents == sorted(percents)
        revisions = [m.revision for m in moments]
        assert revisions == sorted(revisions)


async def _moments(face: Face, name: str) -> list[operation_pb.WatchOperationResponse]:
    return [moment async for moment in face.watch.WatchOperation(operation_pb.WatchOperationRequest(name=name))]


async def test_waiting_ends_with_the_operation_or_the_time(stocked: Face) -> None:
    await launched(stocked)
    stop = await stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM))
    soon = operations_pb2.WaitOperationRequest(name=stop.name, timeout=Duration(nanos=1))
    assert not (await stocked.operations.WaitOperation(soon)).done
    ended = await stocked.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=stop.name))
    assert ended.done
    await stocked.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=stop.name))
    assert (await stocked.operations.GetOperation(operations_pb2.GetOperationRequest(name=stop.name))) == ended


async def _upload_refused(kind: type[E], face: Face, *messages: image_pb.UploadImageRequest) -> E:
    async def all_messages() -> AsyncIterator[image_pb.UploadImageRequest]:
        for message in messages:
            yield message

    call = face.images.UploadImage(all_messages())
    with pytest.raises(kind) as caught:
        async with asyncio.timeout(WAIT_S), stream_errors(call, "the controller"):
            await call
    assert type(caught.value) is kind
    return caught.value


def _spec(**changes: Any) -> image_pb.UploadImageRequest:
    return image_pb.UploadImageRequest(spec=image_spec(**changes))


def _chunk(data: bytes) -> image_pb.UploadImageRequest:
    return image_pb.UploadImageRequest(chunk=data)


async def test_uploads_that_are_refused_leave_nothing(lab: PublicLab, face: Face) -> None:
    qcow2 = b"QFI\xfb" + bytes(len(IMAGE) - 4)
    cases: list[tuple[type[LeewardError], list[image_pb.UploadImageRequest], set[str], str]] = [
        (InvalidArgument, [], {"spec"}, "must be in the first message"),
        (InvalidArgument, [_chunk(IMAGE)], {"spec"}, "must be in the first message"),
        (
            InvalidArgument,
            [_spec(parent="p", image_id="", format=0, sha256="12", size_bytes=0, properties={"": ""}, request_id="é")],
            {
                "spec.parent",
                "spec.image_id",
                "spec.format",
                "spec.sha256",
                "spec.size_bytes",
                "spec.properties[]",
                "spec.request_id",
            },
            "allowed",
        ),
        (InvalidArgument, [_spec(), _chunk(IMAGE[:-1])], {"chunk"}, f"after {len(IMAGE) - 1} of the {len(IMAGE)}"),
        (InvalidArgument, [_spec(), _chunk(IMAGE), _chunk(b"x")], {"chunk"}, f"more than the {len(IMAGE)}"),
        (InvalidArgument, [_spec(size_bytes=2**22), _chunk(bytes(2**21 + 1))], {"chunk"}, f"at most {2**21}"),
        (InvalidArgument, [_spec(), _chunk(IMAGE[:9]), _spec()], {"chunk"}, "must be a chunk"),
        (ImageRefused, [_spec(sha256="ab" * 32), _chunk(IMAGE)], set(), SHA256),
        (ImageRefused, [_spec(sha256=hashlib.sha256(qcow2).hexdigest()), _chunk(qcow2)], set(), "qcow2"),
        (FailedPrecondition, [_spec(pool="elsewhere"), _chunk(IMAGE)], set(), "elsewhere"),
    ]
    for kind, messages, fields, words in cases:
        error = await _upload_refused(kind, face, *messages)
        assert {violation.field for violation in error.fields} == fields, words
        assert words in error.message
    listed = await face.images.ListImages(image_pb.ListImagesRequest(parent="projects/-"))
    assert list(listed.images) == []
    assert lab.cluster.pool.images == {}


async def test_an_image_goes_in_whole_and_comes_out_from_any_offset(face: Face) -> None:
    spec = image_spec(properties={"os": "debian"}, request_id="up")
    made = await face.upload(spec)
    assert (made.sha256, made.size_bytes, made.minimum_disk_gib) == (SHA256, len(IMAGE), 1)
    assert (await face.upload(spec)) == made, "the same request again"
    error = await _upload_refused(AlreadyExists, face, _spec())
    assert error.resource == DEBIAN
    for offset in (0, 1_234_567, len(IMAGE)):
        received = b""
        async for message in face.images.DownloadImage(image_pb.DownloadImageRequest(name=DEBIAN, offset=offset)):
            assert message.offset == offset + len(received)
            received += message.chunk
        assert received == IMAGE[offset:]
    beyond = image_pb.DownloadImageRequest(name=DEBIAN, offset=len(IMAGE) + 1)
    wrong = await refused(InvalidArgument, face.images.DownloadImage(beyond).read())
    assert [violation.field for violation in wrong.fields] == ["offset"]
    update = image_pb.UpdateImageRequest(image=image_pb2.Image(name=DEBIAN, properties={"os": "bookworm"}))
    assert dict((await face.images.UpdateImage(update)).properties) == {"os": "bookworm"}


async def test_an_image_in_use_stays_and_its_file_stays_while_another_has_it(lab: PublicLab, stocked: Face) -> None:
    await launched(stocked)
    delete = image_pb.DeleteImageRequest(name=DEBIAN)
    error = await refused(FailedPrecondition, stocked.images.DeleteImage(delete))
    assert error.specific_reason == "IMAGE_IN_USE"
    assert [violation.subject for violation in error.violations] == [VM]
    await stocked.upload(image_spec("twin"))
    await stocked.ended(await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name=VM)))
    await stocked.images.DeleteImage(delete)
    assert set(lab.cluster.pool.images) == {SHA256}
    await stocked.images.DeleteImage(image_pb.DeleteImageRequest(name="projects/p/images/twin"))
    assert lab.cluster.pool.images == {}


async def test_an_operator_vouches_for_a_dead_node_and_never_for_a_living_one(lab: PublicLab, stocked: Face) -> None:
    made = await launched(stocked)
    node = await stocked.nodes.GetNode(node_pb.GetNodeRequest(name=made.node))
    assert node.heartbeat_alive
    assert node.instance_count == 1
    evacuate = pb.EvacuateInstanceRequest(name=VM)
    attest = node_pb.AttestNodeFencedRequest(name=made.node, boot_id=node.boot_id, evidence="I pulled the plug")
    error = await refused(FailedPrecondition, stocked.nodes.AttestNodeFenced(attest))
    assert error.specific_reason == "NODE_ALIVE"
    error = await refused(FailedPrecondition, stocked.instances.EvacuateInstance(evacuate))
    assert error.specific_reason == "NOT_FENCED"
    error = await refused(FailedPrecondition, stocked.nodes.EvacuateNode(node_pb.EvacuateNodeRequest(name=made.node)))
    assert error.specific_reason == "NOT_FENCED"

    host = made.node.removeprefix("nodes/")
    await lab.cluster.nodes[host].power_off()
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    assert await core.view.wait_for(lambda: host not in core.view.leases, timeout_s=WAIT_S)
    other = node_pb.AttestNodeFencedRequest(name=made.node, boot_id="another", evidence="I pulled the plug")
    error = await refused(FailedPrecondition, stocked.nodes.AttestNodeFenced(other))
    assert error.metadata["boot_id"] == node.boot_id
    proof = await stocked.nodes.AttestNodeFenced(attest)
    assert (proof.boot_id, proof.evidence, proof.observer) == (node.boot_id, "I pulled the plug", str(ADMIN))
    assert (await stocked.nodes.AttestNodeFenced(attest)) == proof
    async with asyncio.timeout(WAIT_S):
        watch = stocked.instances.WatchInstances(pb.WatchInstancesRequest(parent="projects/p"))
        async for event in watch:
            if event.instance.node not in ("", made.node):
                break
        watch.cancel()


async def test_nodes_are_watched_cordoned_and_released(stocked: Face) -> None:
    async with asyncio.timeout(WAIT_S):
        watch = stocked.nodes.WatchNodes(node_pb.WatchNodesRequest())
        names = [(await watch.read()).node.name for _ in range(2)]
        assert names == ["nodes/host-a", "nodes/host-b"]
        await stocked.nodes.CordonNode(node_pb.CordonNodeRequest(name="nodes/host-b", reason="fans"))
        event = await watch.read()
        while event.type == watch_pb2.WATCH_EVENT_TYPE_BOOKMARK or not event.node.cordoned:
            event = await watch.read()
        watch.cancel()
    assert (event.node.name, event.node.cordon_reason) == ("nodes/host-b", "fans")
    listed = await stocked.nodes.ListNodes(node_pb.ListNodesRequest(filter="condition = CORDONED"))
    assert [node.name for node in listed.nodes] == ["nodes/host-b"]
    released = await stocked.nodes.UncordonNode(node_pb.UncordonNodeRequest(name="nodes/host-b"))
    assert not released.cordoned
    assert released.cordon_reason == ""


async def test_every_unbuilt_method_says_so(face: Face) -> None:
    for service, methods in UNIMPLEMENTED.items():
        for method in methods:
            call: Any = face.channel.unary_unary(f"/{service}/{method}")
            error = await refused(Unimplemented, call(b""))
            assert error.metadata["method"] == f"{service}.{method}"


async def test_roles(lab: PublicLab, face: Face) -> None:
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    faces = {}
    for role in (Role.CLIENT, Role.CONTROLLER, Role.AGENT):
        faces[role] = lab.serve(core, address="127.0.0.1:0", principal=Principal(role, "someone"))
        await faces[role].server.start()
    cordon = node_pb.CordonNodeRequest(name="nodes/host-a")
    listing = pb.ListInstancesRequest(parent="projects/p")
    nowhere = operation_pb.WatchOperationRequest(name=f"operations/{'a' * 26}")
    await faces[Role.CLIENT].instances.ListInstances(listing)
    await faces[Role.CLIENT].nodes.ListNodes(node_pb.ListNodesRequest())
    await refused(PermissionDenied, faces[Role.CLIENT].nodes.CordonNode(cordon))
    await refused(PermissionDenied, faces[Role.CLIENT].flavors.CreateFlavor(flavor_pb.CreateFlavorRequest()))
    await refused(NotFound, faces[Role.CONTROLLER].watch.WatchOperation(nowhere).read())
    await refused(PermissionDenied, faces[Role.CONTROLLER].instances.ListInstances(listing))
    await refused(PermissionDenied, faces[Role.AGENT].watch.WatchOperation(nowhere).read())
    await refused(PermissionDenied, faces[Role.AGENT].instances.ListInstances(listing))


async def test_a_console_log_is_read_in_parts(stocked: Face, tmp_path: Path) -> None:
    made = await launched(stocked)
    (tmp_path / f"{made.uid}.log").write_bytes(b"hello\nworld\n")
    part = await stocked.instances.GetConsoleLog(pb.GetConsoleLogRequest(name=VM, offset=6, limit_bytes=5))
    assert (part.data, part.next_offset) == (b"world", 11)
    assert part.end_offset >= 12
