"""What clients ask of instances."""

from collections.abc import Mapping
from typing import TypeVar

from leeward.agent.types import CloudInit, Escalation, GuestProbe, ProbeKind, RebootMode
from leeward.errors import InvalidArgument
from leeward.v1 import instance_pb2 as pb
from leeward.v1 import instance_service_pb2 as service_pb
from leeward_controller.adapters.public.convert.values import masked, seconds
from leeward_controller.domain.instance import PlacementRules, Readiness, RestartPriority, Storage
from leeward_controller.services.creating import NewInstance
from leeward_controller.services.instance_moves import LiveMigrationWish
from leeward_controller.services.instances import InstanceChanges

T = TypeVar("T")

_CHANGEABLE = ("labels", "restart_on_failure", "restart_priority", "readiness")
_STORAGES: dict[int, Storage] = {
    pb.STORAGE_UNSPECIFIED: Storage.ANY,
    pb.STORAGE_SHARED: Storage.SHARED,
    pb.STORAGE_LOCAL: Storage.LOCAL,
}
_PRIORITIES: dict[int, RestartPriority] = {
    pb.RESTART_PRIORITY_UNSPECIFIED: RestartPriority.MEDIUM,
    pb.RESTART_PRIORITY_HIGHEST: RestartPriority.HIGHEST,
    pb.RESTART_PRIORITY_HIGH: RestartPriority.HIGH,
    pb.RESTART_PRIORITY_MEDIUM: RestartPriority.MEDIUM,
    pb.RESTART_PRIORITY_LOW: RestartPriority.LOW,
    pb.RESTART_PRIORITY_LOWEST: RestartPriority.LOWEST,
}
_PROBES: dict[int, ProbeKind] = {
    pb.Readiness.PROBE_GUEST_AGENT: ProbeKind.GUEST_AGENT,
    pb.Readiness.PROBE_TCP_PORT: ProbeKind.TCP_PORT,
}
_REBOOT_MODES: dict[int, RebootMode] = {
    service_pb.REBOOT_MODE_UNSPECIFIED: RebootMode.SOFT,
    service_pb.REBOOT_MODE_SOFT: RebootMode.SOFT,
    service_pb.REBOOT_MODE_HARD: RebootMode.HARD,
}
_ESCALATIONS: dict[int, Escalation] = {
    service_pb.MIGRATION_ESCALATION_UNSPECIFIED: Escalation.AUTO_CONVERGE,
    service_pb.MIGRATION_ESCALATION_NONE: Escalation.NONE,
    service_pb.MIGRATION_ESCALATION_AUTO_CONVERGE: Escalation.AUTO_CONVERGE,
    service_pb.MIGRATION_ESCALATION_POST_COPY: Escalation.POST_COPY,
    service_pb.MIGRATION_ESCALATION_PAUSE: Escalation.PAUSE,
}


def new_instance(request: service_pb.CreateInstanceRequest) -> NewInstance:
    """What a client asks to launch. Raises InvalidArgument for a word that is not known."""
    wanted = request.instance
    return NewInstance(
        parent=request.parent,
        instance_id=request.instance_id,
        flavor=wanted.flavor,
        image=wanted.image,
        bridges=tuple(nic.bridge for nic in wanted.network_interfaces),
        labels=dict(wanted.labels),
        restart_on_failure=wanted.restart_on_failure if wanted.HasField("restart_on_failure") else True,
        restart_priority=_priority(wanted),
        readiness=_readiness(wanted),
        cloud_init=_cloud_init(wanted),
        data_disks_gib=tuple(wanted.data_disks_gib),
        storage=_known(_STORAGES, wanted.storage, "instance.storage", "STORAGE_SHARED, STORAGE_LOCAL"),
        placement=PlacementRules(dict(wanted.placement.required_labels), dict(wanted.placement.preferred_labels)),
        cpu_model=wanted.cpu_model,
        group=wanted.group,
        node=request.node,
        validate_only=request.validate_only,
    )


def changes_of(request: service_pb.UpdateInstanceRequest) -> InstanceChanges:
    """What to change. Raises InvalidArgument."""
    wanted = request.instance
    given = [field.name for field, _ in wanted.ListFields() if field.name in _CHANGEABLE]
    paths = masked(request.update_mask, _CHANGEABLE, given)
    labels = dict(wanted.labels) if "labels" in paths else None
    restarted = wanted.restart_on_failure if wanted.HasField("restart_on_failure") else True
    return InstanceChanges(
        labels,
        restarted if "restart_on_failure" in paths else None,
        _priority(wanted) if "restart_priority" in paths else None,
        changes_readiness="readiness" in paths,
        readiness=_readiness(wanted),
    )


def reboot_mode(request: service_pb.RebootInstanceRequest) -> RebootMode:
    """How to restart. Raises InvalidArgument for a mode that is not known."""
    return _known(_REBOOT_MODES, request.mode, "mode", "REBOOT_MODE_SOFT, REBOOT_MODE_HARD")


def live_migration(request: service_pb.LiveMigrateInstanceRequest) -> LiveMigrationWish:
    """How to live-migrate. Raises InvalidArgument for an escalation that is not known."""
    allowed = ", ".join(f"MIGRATION_ESCALATION_{each.name}" for each in Escalation)
    return LiveMigrationWish(
        node=request.node,
        bandwidth_mib_s=request.max_bandwidth_mib_per_second,
        max_downtime_s=seconds(request, "max_downtime"),
        timeout_s=seconds(request, "timeout"),
        escalation=_known(_ESCALATIONS, request.escalation, "escalation", allowed),
    )


def _priority(wanted: pb.Instance) -> RestartPriority:
    allowed = ", ".join(f"RESTART_PRIORITY_{each.name}" for each in RestartPriority)
    return _known(_PRIORITIES, wanted.restart_priority, "instance.restart_priority", allowed)


def _readiness(wanted: pb.Instance) -> Readiness | None:
    if not wanted.HasField("readiness"):
        return None
    given = wanted.readiness
    kind = _known(_PROBES, given.probe, "instance.readiness.probe", "PROBE_GUEST_AGENT, PROBE_TCP_PORT")
    timeout_s = seconds(given, "timeout")
    probe = GuestProbe(kind, given.host, given.port)
    return Readiness(probe) if timeout_s is None else Readiness(probe, timeout_s)


def _cloud_init(wanted: pb.Instance) -> CloudInit | None:
    if not wanted.HasField("cloud_init"):
        return None
    given = wanted.cloud_init
    # A key as it stands in a file ends in a newline.
    keys = tuple(key.strip() for key in given.ssh_authorized_keys)
    return CloudInit(given.user_data, keys)


def _known(values: Mapping[int, T], number: int, field: str, allowed: str) -> T:
    if number not in values:
        raise InvalidArgument.field(field, f"{number} is not known; allowed: {allowed}")
    return values[number]
