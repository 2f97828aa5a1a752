"""What is asked wrongly is refused precisely, and what is asked twice happens once."""

from base64 import b64encode
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from tests.contract.public_api.calls import DEBIAN, VM, launch, launched, refused
from tests.support.public import Face, add_flavor

from leeward.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    NodeUnfit,
    NoNodeFits,
    NotFound,
    OperationRunning,
    WrongState,
)
from leeward.v1 import flavor_service_pb2 as flavor_pb
from leeward.v1 import image_pb2, instance_pb2
from leeward.v1 import image_service_pb2 as image_pb
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1 import node_service_pb2 as node_pb

ED25519 = "ssh-ed25519 " + b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
GROUP_ELSEWHERE = "projects/other/groups/g"

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
            cloud_init=instance_pb2.CloudInit(
                user_data=b"#" * 65_537, ssh_authorized_keys=["ssh-dss AAAA", f"ssh-rsa {ED25519.split()[1]}", ED25519]
            ),
            data_disks_gib=[1, 0, 65_537],
            placement=instance_pb2.PlacementRules(required_labels={"zone": "z" * 257}, preferred_labels={"": "x"}),
            cpu_model="no model",
            group="groups/g",
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
            "instance.cloud_init.user_data",
            "instance.cloud_init.ssh_authorized_keys[0]",
            "instance.cloud_init.ssh_authorized_keys[1]",
            "instance.data_disks_gib[1]",
            "instance.data_disks_gib[2]",
            "instance.placement.required_labels[zone]",
            "instance.placement.preferred_labels[]",
            "instance.cpu_model",
            "instance.group",
        },
    ),
    (
        "instances",
        "CreateInstance",
        launch(data_disks_gib=[1] * 9, network_interfaces=[instance_pb2.NetworkInterface()] * 9, group=GROUP_ELSEWHERE),
        {"instance.data_disks_gib", "instance.network_interfaces", "instance.group"},
    ),
    ("instances", "CreateInstance", launch(storage=9), {"instance.storage"}),
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
    ("instances", "LiveMigrateInstance", pb.LiveMigrateInstanceRequest(name=VM, escalation=9), {"escalation"}),  # type: ignore[arg-type]
    (
        "instances",
        "MigrateInstance",
        pb.MigrateInstanceRequest(name="x", node="b", grace_period=Duration(seconds=-1), request_id="a b"),
        {"name", "node", "grace_period", "request_id"},
    ),
    ("instances", "EvacuateInstance", pb.EvacuateInstanceRequest(name=VM, node="b", allow_rebuild=True), {"node"}),
    (
        "instances",
        "ResizeInstance",
        pb.ResizeInstanceRequest(name=VM, node="b", auto_confirm_after=Duration(nanos=1)),
        {"flavor", "node", "auto_confirm_after"},
    ),
    (
        "instances",
        "SnapshotInstance",
        pb.SnapshotInstanceRequest(name=VM, properties={"firmware": "coreboot", "machine": "arm", "": "x"}),
        {"image_id", "properties[firmware]", "properties[machine]", "properties[]"},
    ),
    (
        "instances",
        "ShelveInstance",
        pb.ShelveInstanceRequest(name="x", offload_delay=Duration(seconds=-1)),
        {"name", "offload_delay"},
    ),
    ("instances", "UnshelveInstance", pb.UnshelveInstanceRequest(name=VM, node="b"), {"node"}),
    ("instances", "RescueInstance", pb.RescueInstanceRequest(name="x", image="debian"), {"name", "image"}),
    ("instances", "RebuildInstance", pb.RebuildInstanceRequest(name=VM, image="images/debian"), {"image"}),
    ("instances", "PauseInstance", pb.PauseInstanceRequest(name="x", request_id="ü"), {"name", "request_id"}),
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
    (
        "images",
        "UpdateImage",
        image_pb.UpdateImageRequest(image=image_pb2.Image(name=DEBIAN, properties={"machine": "q36", "firmware": ""})),
        {"image.properties[machine]", "image.properties[firmware]"},
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
