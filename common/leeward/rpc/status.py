"""LeewardError to google.rpc.Status and back.

The status carries ErrorInfo with a stable reason, and BadRequest, QuotaFailure, PreconditionFailure, ResourceInfo and
RetryInfo where they apply. Both ways round an error keeps its class, reason, metadata and details.
"""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from leeward import errors
from leeward.errors import DOMAIN, Code, Compacted, FieldViolation, LeewardError, Unavailable, Violation

# gRPC sends a status in HTTP/2 headers, and clients refuse more than 8 KiB of them (`grpc.max_metadata_size`, and the
# same in Java). There the message stands twice, once percent-encoded, and the status in base64: these limits keep the
# whole below that in the worst case.
MAX_STATUS_BYTES = 3_584
_MAX_TEXT_BYTES = 768

# For what may be retried, where nobody knows better when: soon enough to notice, and no burden.
_RETRY_AFTER_S = 1.0

_RETRIABLE = "retriable"
_OMITTED = "omitted_details"

_KINDS: dict[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (ErrorInfo, BadRequest, PreconditionFailure, QuotaFailure, ResourceInfo, RetryInfo)
}

_RESOURCE_TYPES = {
    "instances": "Instance",
    "images": "Image",
    "nodes": "Node",
    "flavors": "Flavor",
    "groups": "Group",
    "projects": "Project",
    "operations": "Operation",
    "backupPolicies": "BackupPolicy",
}

_BY_CODE: dict[Code, type[LeewardError]] = {
    Code.CANCELLED: errors.Cancelled,
    Code.UNKNOWN: errors.InternalError,
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.ABORTED: errors.Conflict,
    Code.OUT_OF_RANGE: errors.FailedPrecondition,
    Code.UNIMPLEMENTED: errors.Unimplemented,
    Code.INTERNAL: errors.InternalError,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DATA_LOSS: errors.DataLoss,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
}


def status_of(error: LeewardError) -> Status:
    """The status that says everything the error does, however long, e.g. for an operation's record."""
    return _status(error, error.message, error.fields, error.violations, error.metadata)


def wire_status_of(error: LeewardError) -> Status:
    """The status to end a call with, in at most MAX_STATUS_BYTES.

    What does not fit is left out: texts are cut, then the last violations go, then fields, then metadata. ErrorInfo's
    `omitted_details` counts them.
    """
    message = _shortened(error.message)
    fields = [FieldViolation(each.field, _shortened(each.description)) for each in error.fields]
    violations = [Violation(each.type, each.subject, _shortened(each.description)) for each in error.violations]
    metadata = [(key, _shortened(value)) for key, value in error.metadata.items()]
    omitted = 0
    while True:
        count = {_OMITTED: str(omitted)} if omitted else {}
        status = _status(error, message, fields, violations, dict(metadata) | count)
        longest = violations or fields or metadata
        if not longest or status.ByteSize() <= MAX_STATUS_BYTES:
            return status
        cut = (len(longest) + 1) // 2
        del longest[-cut:]
        omitted += cut


def error_from(status: Status) -> LeewardError:
    """The error that a status stands for: its class by reason, else by code. Unknown details are passed over."""
    info = ErrorInfo()
    fields: list[FieldViolation] = []
    violations: list[Violation] = []
    resource: str | None = None
    retry_after_s: float | None = None
    for detail in _unpacked(status):
        match detail:
            case ErrorInfo():
                info = detail
            case BadRequest():
                fields += [FieldViolation(each.field, each.description) for each in detail.field_violations]
            case PreconditionFailure():
                violations += [Violation(each.type, each.subject, each.description) for each in detail.violations]
            case QuotaFailure():
                violations += [
                    Violation(each.quota_metric, each.subject, each.description) for each in detail.violations
                ]
            case ResourceInfo():
                resource = detail.resource_name
            case RetryInfo():
                retry_after_s = detail.retry_delay.ToNanoseconds() / 1_000_000_000
    metadata = dict(info.metadata)
    retriable = metadata.pop(_RETRIABLE, "")
    code = _code(status)
    reason = info.reason if info.domain == DOMAIN and info.reason else code.name
    if reason == Compacted.reason and metadata.get("revision", "").isdecimal():
        return Compacted(int(metadata["revision"]))
    error = _class_for(reason, code)(
        status.message or code.name.lower().replace("_", " "),
        reason=reason,
        metadata=metadata,
        fields=fields,
        violations=violations,
        resource=resource,
        retry_after_s=retry_after_s,
    )
    if retriable:
        # A newer server may know better than the class that this version falls back to.
        error.retriable = retriable == "true"
    return error


def is_ours(status: Status) -> bool:
    """Whether the status was made here, and not by gRPC or a proxy."""
    return any(isinstance(detail, ErrorInfo) and detail.domain == DOMAIN for detail in _unpacked(status))


def _status(
    error: LeewardError,
    message: str,
    fields: Sequence[FieldViolation],
    violations: Sequence[Violation],
    metadata: Mapping[str, str],
) -> Status:
    status = Status(code=error.code.value, message=message)
    flags = {_RETRIABLE: "true" if error.retriable else "false"}
    status.details.add().Pack(ErrorInfo(reason=error.specific_reason, domain=DOMAIN, metadata={**metadata, **flags}))
    if fields:
        status.details.add().Pack(_bad_request(fields))
    if violations:
        exhausted = error.code is Code.RESOURCE_EXHAUSTED
        status.details.add().Pack(_quota_failure(violations) if exhausted else _precondition_failure(violations))
    if error.resource is not None:
        info = ResourceInfo(resource_type=_resource_type(error.resource), resource_name=_shortened(error.resource))
        status.details.add().Pack(info)
    retry_after_s = error.retry_after_s
    if retry_after_s is None and isinstance(error, Unavailable) and error.retriable:
        retry_after_s = _RETRY_AFTER_S
    if retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_after_s * 1_000_000_000))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def _bad_request(fields: Sequence[FieldViolation]) -> BadRequest:
    return BadRequest(
        field_violations=[BadRequest.FieldViolation(field=each.field, description=each.description) for each in fields]
    )


def _quota_failure(violations: Sequence[Violation]) -> QuotaFailure:
    return QuotaFailure(
        violations=[
            QuotaFailure.Violation(quota_metric=each.type, subject=each.subject, description=each.description)
            for each in violations
        ]
    )


def _precondition_failure(violations: Sequence[Violation]) -> PreconditionFailure:
    return PreconditionFailure(
        violations=[
            PreconditionFailure.Violation(type=each.type, subject=each.subject, description=each.description)
            for each in violations
        ]
    )


def _resource_type(name: str) -> str:
    """`leeward.dev/Instance` for `projects/p/instances/i`, and nothing for what is no resource name."""
    parts = name.split("/")
    kind = _RESOURCE_TYPES.get(parts[-2]) if len(parts) >= 2 else None
    return f"{DOMAIN}/{kind}" if kind else ""


def _shortened(text: str) -> str:
    """The text in at most _MAX_TEXT_BYTES of UTF-8, with an ellipsis where it was cut."""
    encoded = text.encode()
    if len(encoded) <= _MAX_TEXT_BYTES:
        return text
    return encoded[: _MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"


def _unpacked(status: Status) -> Iterator[Message]:
    """The details of kinds that are known here."""
    for detail in status.details:
        kind = _KINDS.get(detail.TypeName())
        if kind is None:
            continue
        message = kind()
        try:
            detail.Unpack(message)
        except DecodeError:
            # A detail that cannot be read takes nothing away from the code and the message.
            continue
        yield message


def _code(status: Status) -> Code:
    try:
        return Code(status.code)
    except ValueError:
        # gRPC's own rule for codes from the future.
        return Code.UNKNOWN


def _class_for(reason: str, code: Code) -> type[LeewardError]:
    """The class that declares this reason with this code and takes the root's arguments; else the code's own."""
    pending = LeewardError.__subclasses__()
    while pending:
        candidate = pending.pop()
        if candidate.__dict__.get("reason") == reason and candidate.code is code and _is_plain(candidate):
            return candidate
        pending += candidate.__subclasses__()
    return _BY_CODE[code]


def _is_plain(candidate: type[LeewardError]) -> bool:
    return candidate.__init__ is LeewardError.__init__
