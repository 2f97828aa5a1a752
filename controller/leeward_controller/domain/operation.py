"""A durable unit of work on an instance or a node: what was asked, how far it is, how it ended."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from leeward.agent.types import DiskFormat, Escalation, RebootMode, SnapshotFile
from leeward.errors import LeewardError
from leeward_controller.domain.instance import Resources
from leeward_controller.domain.node_operation import (
    BringBackArguments,
    DrainNodeArguments,
    DrillNodeArguments,
    FenceNodeArguments,
    Move,
    RemoveNodeArguments,
)


class OperationType(StrEnum):
    """What an operation does; the public method that starts it bears the same name."""

    CREATE = "CREATE"  # Launch a new instance.
    START = "START"  # Boot a stopped one.
    STOP = "STOP"  # Shut it down.
    REBOOT = "REBOOT"  # Restart it where it is.
    DELETE = "DELETE"  # Remove it and all it holds.
    LIVE_MIGRATE = "LIVE_MIGRATE"  # Move it while it runs.
    EVACUATE = "EVACUATE"  # Restart it elsewhere after its node was fenced.
    UNDELETE = "UNDELETE"  # Bring a soft-deleted one back.
    PAUSE = "PAUSE"  # Halt its processors.
    UNPAUSE = "UNPAUSE"  # Let it run on.
    SUSPEND = "SUSPEND"  # Write its memory to disk and end its process.
    RESUME = "RESUME"  # Bring a suspended one back.
    RESIZE = "RESIZE"  # Give it another flavor.
    CONFIRM_RESIZE = "CONFIRM_RESIZE"  # Keep the new flavor and free the old disk.
    REVERT_RESIZE = "REVERT_RESIZE"  # Go back to the flavor before.
    SNAPSHOT = "SNAPSHOT"  # Make an image of it.
    MIGRATE = "MIGRATE"  # Move it by stopping it here and starting it there.
    SHELVE = "SHELVE"  # Keep it as an image.
    OFFLOAD = "OFFLOAD"  # Free the node of a shelved one.
    UNSHELVE = "UNSHELVE"  # Bring a shelved one back.
    RESCUE = "RESCUE"  # Boot a rescue image beside its disk.
    UNRESCUE = "UNRESCUE"  # End a rescue.
    REBUILD = "REBUILD"  # Give it a new root disk.
    CRASH_DUMP = "CRASH_DUMP"  # Send it a non-maskable interrupt.
    RECOVER = "RECOVER"  # Start it again as it was, after it was killed or its host was rebooted.
    DRAIN_NODE = "DRAIN_NODE"  # Move every instance off a node.
    BRING_BACK = "BRING_BACK"  # Move back onto a node what a drain moved away.
    DRILL_NODE = "DRILL_NODE"  # Move live what runs on a node to where failover would restart it, and back.
    FENCE_NODE = "FENCE_NODE"  # Make sure that a node runs no guest.
    REMOVE_NODE = "REMOVE_NODE"  # Take a node out of the cluster.


class OperationPhase(StrEnum):
    """Where an operation stands."""

    RUNNING = "RUNNING"  # Going forward.
    UNDOING = "UNDOING"  # Taking back its steps, after an error or a cancellation.
    SUCCEEDED = "SUCCEEDED"  # Done.
    FAILED = "FAILED"  # Ended with an error; what it had done is undone.
    CANCELLED = "CANCELLED"  # Ended on request; what it had done is undone.

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (OperationPhase.SUCCEEDED, OperationPhase.FAILED, OperationPhase.CANCELLED)


@dataclass(frozen=True, slots=True)
class CreateArguments:
    """Launch: the node asked for by name, or empty for the scheduler's choice."""

    node: str = ""


@dataclass(frozen=True, slots=True)
class StartArguments:
    """Start has no arguments."""


@dataclass(frozen=True, slots=True)
class StopArguments:
    """Stop: how long the guest may take after the ACPI request before it is killed."""

    grace_period_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RebootArguments:
    """Reboot: how, and how long a soft one may take before it becomes hard."""

    mode: RebootMode = RebootMode.SOFT
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class DeleteArguments:
    """Delete: how long it can be brought back; 0 lets it go at once."""

    retention_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LiveMigrateArguments:
    """Live migrate: the node asked for by name or empty, and the bounds; 0 leaves a bound to the default."""

    node: str = ""
    bandwidth_mib_s: int = 0
    max_downtime_ms: int = 300
    timeout_s: float = 3600.0
    escalation: Escalation = Escalation.AUTO_CONVERGE


@dataclass(frozen=True, slots=True)
class EvacuateArguments:
    """Evacuate: the node asked for by name or empty, and the boot whose fence proof allows it.

    With `allow_rebuild` an instance whose disk was on the lost node is made anew from its latest backup or its image.
    `preferred_node` is where failover, which places many at once, has seen room; another one is taken when it is gone.
    """

    node: str = ""
    fenced_node: str = ""
    fenced_boot_id: str = ""
    automatic: bool = False
    allow_rebuild: bool = False
    preferred_node: str = ""


@dataclass(frozen=True, slots=True)
class PlainArguments:
    """For operations that need no more than the instance."""


@dataclass(frozen=True, slots=True)
class ResizeArguments:
    """Resize: the flavor with what it gives, the node asked for or empty, and when it confirms by itself (0: never)."""

    flavor: str
    resources: Resources
    node: str = ""
    auto_confirm_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SnapshotArguments:
    """Snapshot: the resource name of the image to make, its properties, and the backup policy it is for or empty."""

    image: str
    properties: dict[str, str] = field(default_factory=dict)
    backup_policy: str = ""


@dataclass(frozen=True, slots=True)
class MigrateArguments:
    """Migrate: the node asked for by name or empty, and how long the guest may take to shut down."""

    node: str = ""
    grace_period_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ShelveArguments:
    """Shelve: the image to make, how long its node is kept, and how long the guest may take to shut down."""

    image: str
    offload_delay_s: float = 0.0
    grace_period_s: float = 60.0


@dataclass(frozen=True, slots=True)
class UnshelveArguments:
    """Unshelve: the node asked for by name or empty."""

    node: str = ""


@dataclass(frozen=True, slots=True)
class RescueArguments:
    """Rescue: the image to boot, and how long the guest may take to shut down."""

    image: str
    digest: str
    format: DiskFormat
    grace_period_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RebuildArguments:
    """Rebuild: the image to make the new root disk of."""

    image: str
    digest: str
    format: DiskFormat


Arguments = (
    CreateArguments
    | StartArguments
    | StopArguments
    | RebootArguments
    | DeleteArguments
    | LiveMigrateArguments
    | EvacuateArguments
    | PlainArguments
    | ResizeArguments
    | SnapshotArguments
    | MigrateArguments
    | ShelveArguments
    | UnshelveArguments
    | RescueArguments
    | RebuildArguments
    | DrainNodeArguments
    | BringBackArguments
    | DrillNodeArguments
    | FenceNodeArguments
    | RemoveNodeArguments
)


@dataclass(frozen=True, slots=True)
class Work:
    """What the steps of an operation have found out and must remember across replicas."""

    source_node: str = ""
    target_node: str = ""
    run_epoch: int = 0
    excluded_nodes: tuple[str, ...] = ()
    attempt: int = 0
    note: str = ""
    target_pool_id: str = ""
    source_pool_id: str = ""
    snapshot: SnapshotFile | None = None
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class OperationError:
    """How an operation failed: as much of a LeewardError as a client needs to act on."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: LeewardError) -> "OperationError":
        """The lasting form of an error."""
        metadata = {**error.metadata}
        for violation in error.violations:
            metadata[violation.subject] = violation.description
        return cls(error.code.value, error.specific_reason, error.message, metadata)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that was taken: when, by which controller, and how long it took."""

    step: str
    start_time: datetime
    seconds: float
    controller: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, on an instance or on a node: the one that it is not about is left empty.

    `owner` is the controller that drives it, `predecessor` the operation it interrupted, `parent` the one that it is
    part of.
    """

    id: str
    type: OperationType
    instance: str
    instance_uid: str
    arguments: Arguments
    phase: OperationPhase
    step: str
    requested_by: str
    create_time: datetime
    update_time: datetime
    work: Work = field(default_factory=Work)
    owner: str = ""
    claims: int = 0
    predecessor: str = ""
    cancel_requested: bool = False
    request_id: str = ""
    request_fingerprint: str = ""
    end_time: datetime | None = None
    error: OperationError | None = None
    undo_cause: OperationError | None = None
    history: tuple[StepRecord, ...] = ()
    node: str = ""
    node_uid: str = ""
    parent: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`operations/{operation}`."""
        return f"operations/{self.id}"

    @property
    def subject(self) -> str:
        """The resource name of what it is about."""
        return f"nodes/{self.node}" if self.node else self.instance

    @property
    def subject_uid(self) -> str:
        """The uid of what it is about."""
        return self.node_uid if self.node else self.instance_uid
