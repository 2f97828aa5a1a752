"""A durable unit of work on an instance: what was asked, how far it is, how it ended."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from leeward.agent.types import RebootMode
from leeward.errors import LeewardError


class OperationType(StrEnum):
    """What an operation does; the public method that starts it bears the same name."""

    CREATE = "CREATE"  # Launch a new instance.
    START = "START"  # Boot a stopped one.
    STOP = "STOP"  # Shut it down.
    REBOOT = "REBOOT"  # Restart it where it is.
    DELETE = "DELETE"  # Remove it and all it holds.
    LIVE_MIGRATE = "LIVE_MIGRATE"  # Move it while it runs.
    EVACUATE = "EVACUATE"  # Restart it elsewhere after its node was fenced.


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
    """Delete has no arguments."""


@dataclass(frozen=True, slots=True)
class LiveMigrateArguments:
    """Live migrate: the node asked for by name or empty, and the bounds; 0 leaves a bound to the default."""

    node: str = ""
    bandwidth_mib_s: int = 0
    max_downtime_ms: int = 300
    timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class EvacuateArguments:
    """Evacuate: the node asked for by name or empty, and the boot whose fence proof allows it."""

    node: str = ""
    fenced_node: str = ""
    fenced_boot_id: str = ""
    automatic: bool = False


Arguments = (
    CreateArguments
    | StartArguments
    | StopArguments
    | RebootArguments
    | DeleteArguments
    | LiveMigrateArguments
    | EvacuateArguments
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
    """One operation. `owner` is the controller that drives it, `predecessor` the operation it interrupted."""

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

    @property
    def name(self) -> str:
        """`operations/{operation}`."""
        return f"operations/{self.id}"
