"""Every error that Leeward raises on purpose: one tree.

Each class knows the gRPC status code it becomes, a stable reason that clients may match on, and whether the same call
may be retried as it is. One interceptor on the server maps them to `google.rpc.Status`; one function in the SDK maps
them back. This module imports nothing but the standard library, so that pure code can use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

DOMAIN = "leeward.dev"


class Code(Enum):
    """The gRPC status codes by their canonical numbers (google/rpc/code.proto)."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that cannot be accepted: its path, and what was wrong and what is allowed."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Violation:
    """One precondition or quota that does not hold: its kind, what it is about, and what to do."""

    type: str
    subject: str
    description: str


class LeewardError(Exception):
    """The root. Carries everything a client needs: message, metadata for ErrorInfo, and details by kind."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    retriable: bool = False  # A class says it for its kind; one that came over the wire says it for itself.

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        fields: Sequence[FieldViolation] = (),
        violations: Sequence[Violation] = (),
        resource: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.specific_reason = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.fields = tuple(fields)
        self.violations = tuple(violations)
        self.resource = resource
        self.retry_after_s = retry_after_s


class InvalidArgument(LeewardError):
    """The request is wrong whatever the state of the system; `fields` says where."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    @classmethod
    def field(cls, field: str, description: str) -> "InvalidArgument":
        """One wrong field: `description` says what was wrong and what is allowed."""
        return cls(f"{field}: {description}", fields=[FieldViolation(field, description)])


class NotFound(LeewardError):
    """The named resource does not exist."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"

    @classmethod
    def named(cls, name: str) -> "NotFound":
        return cls(f"{name} does not exist", resource=name)


class AlreadyExists(LeewardError):
    """A resource of that name exists already."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"

    @classmethod
    def named(cls, name: str) -> "AlreadyExists":
        return cls(f"{name} exists already", resource=name)


class FailedPrecondition(LeewardError):
    """The state of the system does not allow this call now."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class WrongState(FailedPrecondition):
    """The instance or node is in a state from which this is not allowed."""

    reason = "WRONG_STATE"


class Locked(FailedPrecondition):
    """The instance is locked against changes."""

    reason = "INSTANCE_LOCKED"


class ResourceExhausted(LeewardError):
    """A limit is reached: a quota, room on the nodes, or the size of a message."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class NoNodeFits(ResourceExhausted):
    """No node can take the instance; one violation a node says why."""

    reason = "NO_NODE_FITS"


class NodeUnfit(FailedPrecondition):
    """The node that was asked for by name cannot take the instance."""

    reason = "NODE_UNFIT"


class StaleRunEpoch(FailedPrecondition):
    """The right to run this guest has moved on: the caller's run epoch is not the one kept beside the disk."""

    reason = "STALE_RUN_EPOCH"


class StaleClaim(FailedPrecondition):
    """A newer revision has been seen: the call comes late, or its caller has been superseded and must stop."""

    reason = "STALE_CLAIM"


class ImageRefused(InvalidArgument):
    """The bytes are not an image that Leeward accepts."""

    reason = "IMAGE_REFUSED"


class Conflict(LeewardError):
    """Somebody else changed the same thing first; read again and retry."""

    code = Code.ABORTED
    reason = "CONFLICT"
    retriable = True


class OperationRunning(LeewardError):
    """Another operation is running on this instance; its name is in the metadata."""

    code = Code.ABORTED
    reason = "OPERATION_RUNNING"
    retriable = True


class Unavailable(LeewardError):
    """A part needed for this call cannot be reached now. It did not happen."""

    code = Code.UNAVAILABLE
    reason = "UNAVAILABLE"
    retriable = True


class StoreUnavailable(Unavailable):
    """etcd cannot be reached or has no leader. Definite: nothing was written."""

    reason = "STORE_UNAVAILABLE"


class StoreIndefinite(Unavailable):
    """etcd did not answer in time: the write may or may not have happened. Observe before trying again."""

    reason = "STORE_INDEFINITE"
    retriable = False


class AgentUnavailable(Unavailable):
    """The node's agent cannot be reached. Definite: it did not receive the call."""

    reason = "AGENT_UNAVAILABLE"


class AgentIndefinite(Unavailable):
    """The node's agent was lost in mid-call: it may have acted. Observe before trying again."""

    reason = "AGENT_INDEFINITE"
    retriable = False


class Draining(Unavailable):
    """This server is stopping; streams resume on another one."""

    reason = "DRAINING"


class DeadlineExceeded(LeewardError):
    """It took longer than allowed."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    retriable = True


class Cancelled(LeewardError):
    """It was cancelled on request."""

    code = Code.CANCELLED
    reason = "CANCELLED"


class Compacted(LeewardError):
    """The revision to resume from is gone; `metadata["revision"]` is the one to relist from."""

    code = Code.OUT_OF_RANGE
    reason = "COMPACTED"

    def __init__(self, revision: int) -> None:
        super().__init__(
            f"revisions before {revision} are compacted: list again and watch from there",
            metadata={"revision": str(revision)},
        )
        self.revision = revision


class LeaseNotFound(LeewardError):
    """The lease has expired or was revoked."""

    code = Code.NOT_FOUND
    reason = "LEASE_NOT_FOUND"


class Unimplemented(LeewardError):
    """Laid out in the contract, but not built yet."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class Unauthenticated(LeewardError):
    """The caller has shown no certificate that this cluster signed."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(LeewardError):
    """The caller's certificate does not carry the role that this call needs."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class DataLoss(LeewardError):
    """Stored bytes are not what they were."""

    code = Code.DATA_LOSS
    reason = "DATA_LOSS"


class HypervisorError(LeewardError):
    """libvirt or QEMU refused or failed; the message is theirs, with what was being done."""

    code = Code.INTERNAL
    reason = "HYPERVISOR"


class StorageError(LeewardError):
    """A pool or a disk in it cannot be read or written."""

    code = Code.UNAVAILABLE
    reason = "STORAGE"
    retriable = True


class InternalError(LeewardError):
    """An invariant does not hold: a defect of Leeward, reported with its story."""


class NodeGone(LeewardError):
    """The node is fenced: it runs nothing any more, and nothing on it can or need be undone."""

    code = Code.FAILED_PRECONDITION
    reason = "NODE_GONE"
