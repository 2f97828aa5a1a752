"""Instances and their history, as clients see them."""

from leeward.agent.types import ConsoleChunk
from leeward.v1 import instance_pb2 as pb
from leeward.v1 import instance_service_pb2 as service_pb
from leeward.v1 import operation_pb2
from leeward_controller.adapters.public.convert.values import duration, step_to_wire, timestamp, watch_event_type
from leeward_controller.domain.cluster import InstanceEvent
from leeward_controller.domain.instance import Instance, PlacementRules, Readiness, Resize, Storage
from leeward_controller.records import INSTANCES, Stored
from leeward_controller.services.paging import Listing
from leeward_controller.services.watches import WatchEvent

_STORAGES = {
    Storage.ANY: pb.STORAGE_UNSPECIFIED,
    Storage.SHARED: pb.STORAGE_SHARED,
    Storage.LOCAL: pb.STORAGE_LOCAL,
}


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
        restart_priority=pb.RestartPriority.Value(f"RESTART_PRIORITY_{instance.restart_priority.name}"),
        node=f"nodes/{instance.node}" if instance.node else "",
        run_epoch=instance.run_epoch,
        current_operation=instance.current_operation,
        fault=instance.fault,
        create_time=timestamp(instance.create_time),
        update_time=timestamp(instance.update_time),
        creator=instance.created_by,
        etag=stored.etag,
    )
    _add_wishes(instance, message)
    _add_times_and_lock(instance, message)
    if instance.resize is not None:
        message.resize.CopyFrom(_resize_to_wire(instance.resize))
    if instance.rescue is not None:
        message.rescue_image = instance.rescue.image
    if instance.shelf is not None:
        message.shelved_image = instance.shelf.image
    return message


def _add_wishes(instance: Instance, message: pb.Instance) -> None:
    """What was asked for beside size and image. User data may hold secrets and is never shown."""
    if instance.cloud_init is not None:
        message.cloud_init.CopyFrom(pb.CloudInit(ssh_authorized_keys=instance.cloud_init.ssh_authorized_keys))
    message.data_disks_gib.extend(instance.data_disks_gib)
    message.storage = _STORAGES[instance.storage]
    if instance.placement != PlacementRules():
        message.placement.required_labels.update(instance.placement.required_labels)
        message.placement.preferred_labels.update(instance.placement.preferred_labels)
    message.cpu_model = instance.cpu_model
    message.group = instance.group
    if instance.readiness is not None:
        message.readiness.CopyFrom(_readiness_to_wire(instance.readiness))


def _add_times_and_lock(instance: Instance, message: pb.Instance) -> None:
    if instance.last_boot_time is not None:
        message.last_boot_time.CopyFrom(timestamp(instance.last_boot_time))
    if instance.deletion is not None:
        message.expire_time.CopyFrom(timestamp(instance.deletion.expire_time))
    if instance.shelf is not None and instance.shelf.offload_time is not None:
        message.offload_time.CopyFrom(timestamp(instance.shelf.offload_time))
    if instance.lock is not None:
        lock = instance.lock
        message.lock.CopyFrom(pb.InstanceLock(reason=lock.reason, locker=lock.locker, lock_time=timestamp(lock.time)))


def _readiness_to_wire(readiness: Readiness) -> pb.Readiness:
    probe = readiness.probe
    return pb.Readiness(
        probe=pb.Readiness.Probe.Value(f"PROBE_{probe.kind.name}"),
        host=probe.host,
        port=probe.port,
        timeout=duration(readiness.timeout_s),
    )


def _resize_to_wire(resize: Resize) -> pb.InstanceResize:
    message = pb.InstanceResize(flavor=f"flavors/{resize.flavor}", node=f"nodes/{resize.node}" if resize.node else "")
    if resize.confirm_time is not None:
        message.confirm_time.CopyFrom(timestamp(resize.confirm_time))
    return message


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
        steps=[step_to_wire(step) for step in event.steps],
    )
