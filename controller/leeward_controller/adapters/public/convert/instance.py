"""Instances and their history."""

from leeward.agent.types import ConsoleChunk, RebootMode
from leeward.errors import InvalidArgument
from leeward.v1 import instance_pb2 as pb
from leeward.v1 import instance_service_pb2 as service_pb
from leeward.v1 import operation_pb2
from leeward_controller.adapters.public.convert.values import masked, timestamp, watch_event_type
from leeward_controller.domain.cluster import InstanceEvent
from leeward_controller.domain.instance import Instance
from leeward_controller.records import INSTANCES, Stored
from leeward_controller.services.creating import NewInstance
from leeward_controller.services.paging import Listing
from leeward_controller.services.watches import WatchEvent

_UNSUPPORTED = ("cloud_init", "group")
_CHANGEABLE = ("labels", "restart_on_failure")


def instance_to_wire(stored: Stored[Instance]) -> pb.Instance:
    """An instance as clients see it."""
    instance = stored.value
    message = pb.Instance(
        name=instance.name,
        uid=instance.uid,
        state=pb.Instance.State.Value(f"STATE_{instance.state.name}"),
        flavor=f"flavors/{instance.flavor}",
        resources=pb.InstanceResources(
            vcpus=instance.resources.vcpus,
            memory_mib=instance.resources.memory_mib,
            disk_gib=instance.resources.disk_gib,
        ),
        image=instance.image,
        image_sha256=instance.image_digest,
        pool=instance.pool_id,
        network_interfaces=[pb.NetworkInterface(mac_address=nic.mac, bridge=nic.bridge) for nic in instance.nics],
        labels=instance.labels,
        restart_on_failure=instance.restart_on_failure,
        node=f"nodes/{instance.node}" if instance.node else "",
        run_epoch=instance.run_epoch,
        current_operation=instance.current_operation,
        fault=instance.fault,
        create_time=timestamp(instance.create_time),
        update_time=timestamp(instance.update_time),
        creator=instance.created_by,
        etag=stored.etag,
    )
    if instance.last_boot_time is not None:
        message.last_boot_time.CopyFrom(timestamp(instance.last_boot_time))
    return message


def new_instance(request: service_pb.CreateInstanceRequest) -> NewInstance:
    """What a client asks to launch."""
    wanted = request.instance
    unsupported = [f"instance.{field.name}" for field, _ in wanted.ListFields() if field.name in _UNSUPPORTED]
    return NewInstance(
        parent=request.parent,
        instance_id=request.instance_id,
        flavor=wanted.flavor,
        image=wanted.image,
        bridges=tuple(nic.bridge for nic in wanted.network_interfaces),
        labels=dict(wanted.labels),
        restart_on_failure=wanted.restart_on_failure if wanted.HasField("restart_on_failure") else True,
        node=request.node,
        unsupported=tuple(unsupported),
        validate_only=request.validate_only,
    )


def changes_of(request: service_pb.UpdateInstanceRequest) -> tuple[dict[str, str] | None, bool | None]:
    """The labels and the restart on failure to set, each None when it stays. Raises InvalidArgument."""
    wanted = request.instance
    given = [field.name for field, _ in wanted.ListFields() if field.name in _CHANGEABLE]
    paths = masked(request.update_mask, _CHANGEABLE, given)
    labels = dict(wanted.labels) if "labels" in paths else None
    if "restart_on_failure" not in paths:
        return labels, None
    return labels, wanted.restart_on_failure if wanted.HasField("restart_on_failure") else True


def reboot_mode(request: service_pb.RebootInstanceRequest) -> RebootMode:
    """How to restart. Raises InvalidArgument for a mode that is not known."""
    modes = {
        service_pb.REBOOT_MODE_UNSPECIFIED: RebootMode.SOFT,
        service_pb.REBOOT_MODE_SOFT: RebootMode.SOFT,
        service_pb.REBOOT_MODE_HARD: RebootMode.HARD,
    }
    mode = modes.get(request.mode)
    if mode is None:
        raise InvalidArgument.field("mode", f"{request.mode} is not known; allowed: REBOOT_MODE_SOFT, REBOOT_MODE_HARD")
    return mode


def watch_response(event: WatchEvent[Instance]) -> service_pb.WatchInstancesResponse:
    """One message of a watch."""
    message = service_pb.WatchInstancesResponse(type=watch_event_type(event.type), revision=event.revision)
    if event.record is not None:
        message.instance.CopyFrom(instance_to_wire(event.record))
    elif event.key:
        message.instance.name = event.key.removeprefix(INSTANCES.prefix)
    return message


def console_to_wire(chunk: ConsoleChunk) -> service_pb.GetConsoleLogResponse:
    """Part of a console log."""
    return service_pb.GetConsoleLogResponse(data=chunk.data, next_offset=chunk.next_offset, end_offset=chunk.end_offset)


def events_to_wire(listing: Listing[InstanceEvent]) -> service_pb.ListInstanceEventsResponse:
    """One page of a history."""
    return service_pb.ListInstanceEventsResponse(
        events=[_event_to_wire(item.value) for item in listing.items], next_page_token=listing.next_page_token
    )


def _event_to_wire(event: InstanceEvent) -> pb.InstanceEvent:
    return pb.InstanceEvent(
        instance_uid=event.instance_uid,
        operation=event.operation,
        type=operation_pb2.OperationType.Value(f"OPERATION_TYPE_{event.type}"),
        requested_by=event.requested_by,
        outcome=event.outcome,
        start_time=timestamp(event.start_time),
        end_time=timestamp(event.end_time),
    )
