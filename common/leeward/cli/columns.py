"""What a table shows of each kind of resource."""

from collections.abc import Callable
from typing import Any

from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from leeward.cli.describe import enum_text, seconds_of, time_text
from leeward.cli.names import short
from leeward.cli.units import age_text, duration_text, size_text
from leeward.client.operations import metadata_of
from leeward.clock import SystemClock
from leeward.v1.admin_service_pb2 import Leftover
from leeward.v1.backup_policy_pb2 import BackupPolicy
from leeward.v1.failover_pb2 import Failover
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.group_pb2 import Group
from leeward.v1.image_pb2 import DiskFormat, Image
from leeward.v1.instance_pb2 import Instance, InstanceEvent
from leeward.v1.node_pb2 import FenceProof, FenceProofKind, Node
from leeward.v1.node_service_pb2 import PlannedPlacement
from leeward.v1.operation_pb2 import OperationMetadata, OperationPhase, OperationType
from leeward.v1.project_pb2 import Project

_MIB = 1024 * 1024
_DIGEST_CHARACTERS = 12


def name_of(item: Message) -> str:
    """The resource name of an item; for an event, that of its operation; for a leftover, the guest's uid."""
    return str(getattr(item, "name", "") or getattr(item, "operation", "") or getattr(item, "instance_uid", ""))


def headers_of(item: Message) -> tuple[str, ...]:
    """The headers of the table that `item` stands in."""
    return _TABLES[type(item).DESCRIPTOR.full_name][0]


def cells_of(item: Message, *, full_names: bool = False) -> tuple[str, ...]:
    """The row for `item`, as wide as the headers. Names are short unless told."""
    return _TABLES[type(item).DESCRIPTOR.full_name][1](item, str if full_names else short)


def operation_verb(metadata: OperationMetadata) -> str:
    """What an operation does, as the command that starts it: `live-migrate`."""
    return enum_text(OperationType.DESCRIPTOR, metadata.type).lower().replace("_", "-")


def phase_text(metadata: OperationMetadata) -> str:
    """Where an operation stands: `RUNNING`."""
    return enum_text(OperationPhase.DESCRIPTOR, metadata.phase)


def state_text(instance: Instance) -> str:
    """Where an instance stands: `ACTIVE`."""
    return enum_text(Instance.State.DESCRIPTOR, instance.state)


def condition_text(node: Node) -> str:
    """What the controllers make of a node: `READY`."""
    return enum_text(Node.Condition.DESCRIPTOR, node.condition)


def failover_state(failover: Failover) -> str:
    """How far a failover is, or how it ended: `RECOVERED`."""
    return enum_text(Failover.State.DESCRIPTOR, failover.state)


def failover_proof(failover: Failover) -> str:
    """How it is known that the node runs nothing: `SILENCE`; empty when it is not."""
    return enum_text(FenceProofKind.DESCRIPTOR, failover.proof_kind)


Name = Callable[[str], str]


def _instance(item: Instance, name: Name) -> tuple[str, ...]:
    return (
        name(item.name),
        state_text(item),
        short(item.node) or "-",
        short(item.flavor),
        short(item.image),
        short(item.current_operation),
        _age(item.create_time),
        (item.lock.reason or "yes") if item.HasField("lock") else "",
        item.fault,
    )


def _why(item: Node) -> str:
    """Why a node is what it is; what operators want of it comes first, and hides only that all is well."""
    if item.cordon_reason and item.condition == Node.CONDITION_READY:
        return item.cordon_reason
    return "; ".join(filter(None, (item.cordon_reason, item.condition_reason)))


def _node(item: Node, name: Name) -> tuple[str, ...]:
    return (
        name(item.name),
        condition_text(item),
        f"{item.allocated.vcpus}/{item.capacity.vcpus}",
        f"{size_text(item.allocated.memory_mib * _MIB)} / {size_text(item.capacity.memory_mib * _MIB)}",
        str(item.instance_count),
        "alive" if item.heartbeat_alive else "lost",
        "armed" if item.guard_armed else "no",
        item.hypervisor,
        short(item.current_operation),
        _why(item),
    )


def _proof(item: FenceProof, name: Name) -> tuple[str, ...]:
    return (
        name(item.node),
        enum_text(FenceProofKind.DESCRIPTOR, item.kind),
        time_text(item.proof_time),
        item.boot_id,
        item.evidence,
    )


def _failover(item: Failover, name: Name) -> tuple[str, ...]:
    def seconds(field: str) -> str:
        return duration_text(seconds_of(getattr(item, field))) if item.HasField(field) else ""  # type: ignore[arg-type]

    troubled = item.failed_count + item.no_place_count + item.waiting_count
    return (
        name(item.name),
        name(item.node),
        "drill" if item.kind == Failover.KIND_DRILL else "",
        failover_state(item),
        time_text(item.begin_time),
        failover_proof(item),
        seconds("proof_duration"),
        f"{item.restarted_count}/{item.to_restart_count}" if item.restarted_count or item.to_restart_count else "",
        seconds("first_restart_duration"),
        seconds("last_restart_duration"),
        str(troubled) if troubled else "",
    )


def _planned(item: PlannedPlacement, name: Name) -> tuple[str, ...]:
    return name(item.instance), short(item.node) or "-", item.reason


def _image(item: Image, name: Name) -> tuple[str, ...]:
    return (
        name(item.name),
        enum_text(DiskFormat.DESCRIPTOR, item.format).lower(),
        size_text(item.size_bytes),
        size_text(item.virtual_size_bytes),
        f"{item.minimum_disk_gib} GiB",
        item.sha256[:_DIGEST_CHARACTERS],
        ",".join(item.pools),
        _age(item.create_time),
    )


def _flavor(item: Flavor, name: Name) -> tuple[str, ...]:
    return name(item.name), str(item.vcpus), size_text(item.memory_mib * _MIB), f"{item.disk_gib} GiB"


def _backup_policy(item: BackupPolicy, name: Name) -> tuple[str, ...]:
    return (
        name(item.name),
        item.schedule,
        item.time_zone or "UTC",
        str(item.keep_count),
        ",".join(map(short, item.instances)),
        time_text(item.last_run_time) or "never",
        "paused" if item.paused else time_text(item.next_run_time),
        ",".join(short(failure.instance) for failure in item.failures),
    )


def _group(item: Group, name: Name) -> tuple[str, ...]:
    policy = enum_text(Group.Policy.DESCRIPTOR, item.policy).lower().replace("_", "-")
    return name(item.name), policy, ",".join(name(each) for each in item.instances), _age(item.create_time)


def _project(item: Project, name: Name) -> tuple[str, ...]:
    def share(field: str, text: Callable[[int], str] = str) -> str:
        limit = text(getattr(item.quota, field)) if item.quota.HasField(field) else "-"  # type: ignore[arg-type]
        return f"{text(getattr(item.usage, field))} / {limit}"

    return (
        name(item.name),
        share("instances"),
        share("vcpus"),
        share("memory_mib", lambda mib: size_text(mib * _MIB)),
        share("disk_gib", lambda gib: f"{gib} GiB"),
        share("images"),
        share("image_bytes", size_text),
    )


def _operation(item: Operation, name: Name) -> tuple[str, ...]:
    metadata = metadata_of(item)
    took_s = _at(metadata.end_time) - _at(metadata.create_time)
    return (
        short(item.name),
        operation_verb(metadata),
        name(metadata.instance or metadata.node),
        phase_text(metadata),
        metadata.step if not item.done else "",
        f"{metadata.percent}%" if not item.done else "",
        duration_text(took_s) if metadata.HasField("end_time") else "",
        _age(metadata.create_time),
        item.error.message,
    )


def _event(item: InstanceEvent, name: Name) -> tuple[str, ...]:
    took_s = _at(item.end_time) - _at(item.start_time)
    return (
        time_text(item.start_time),
        enum_text(OperationType.DESCRIPTOR, item.type).lower().replace("_", "-"),
        item.requested_by,
        duration_text(took_s) if item.HasField("end_time") else "",
        item.outcome,
        short(item.operation),
    )


def _leftover(item: Leftover, name: Name) -> tuple[str, ...]:
    return (
        name(item.instance) or item.instance_uid,
        enum_text(Leftover.Kind.DESCRIPTOR, item.kind).lower().replace("_", " "),
        (short(item.current_node) or "no node") if item.instance_exists else "deleted",
        item.explanation,
        item.fate,
    )


_TABLES: dict[str, tuple[tuple[str, ...], Callable[[Any, Name], tuple[str, ...]]]] = {
    Instance.DESCRIPTOR.full_name: (
        ("NAME", "STATE", "NODE", "FLAVOR", "IMAGE", "OPERATION", "AGE", "LOCKED", "FAULT"),
        _instance,
    ),
    Node.DESCRIPTOR.full_name: (
        (
            "NAME",
            "CONDITION",
            "VCPUS",
            "MEMORY",
            "INSTANCES",
            "HEARTBEAT",
            "GUARD",
            "HYPERVISOR",
            "OPERATION",
            "REASON",
        ),
        _node,
    ),
    FenceProof.DESCRIPTOR.full_name: (("NODE", "PROOF", "TIME", "BOOT", "EVIDENCE"), _proof),
    Failover.DESCRIPTOR.full_name: (
        (
            "FAILOVER",
            "NODE",
            "KIND",
            "STATE",
            "BEGAN",
            "PROOF",
            "PROVED IN",
            "RESTARTED",
            "FIRST IN",
            "LAST IN",
            "WAITING",
        ),
        _failover,
    ),
    Leftover.DESCRIPTOR.full_name: (("INSTANCE", "LEFT", "NOW ON", "WHAT THERE IS", "ONCE RELEASED"), _leftover),
    PlannedPlacement.DESCRIPTOR.full_name: (("INSTANCE", "WOULD GO TO", "BECAUSE"), _planned),
    Image.DESCRIPTOR.full_name: (
        ("NAME", "FORMAT", "SIZE", "DISK", "NEEDS", "SHA-256", "POOLS", "AGE"),
        _image,
    ),
    BackupPolicy.DESCRIPTOR.full_name: (
        ("NAME", "SCHEDULE", "ZONE", "KEEPS", "INSTANCES", "LAST RUN", "NEXT RUN", "FAILED"),
        _backup_policy,
    ),
    Flavor.DESCRIPTOR.full_name: (("NAME", "VCPUS", "MEMORY", "DISK"), _flavor),
    Group.DESCRIPTOR.full_name: (("NAME", "POLICY", "INSTANCES", "AGE"), _group),
    Project.DESCRIPTOR.full_name: (
        ("NAME", "INSTANCES", "VCPUS", "MEMORY", "DISK", "IMAGES", "IMAGE SIZE"),
        _project,
    ),
    Operation.DESCRIPTOR.full_name: (
        ("OPERATION", "DOES", "TO", "PHASE", "STEP", "DONE", "TOOK", "AGE", "ERROR"),
        _operation,
    ),
    InstanceEvent.DESCRIPTOR.full_name: (("TIME", "DID", "BY", "TOOK", "OUTCOME", "OPERATION"), _event),
}


def _at(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9


def _age(timestamp: Timestamp) -> str:
    return age_text(SystemClock().now().timestamp() - timestamp.seconds) if timestamp.seconds else ""
