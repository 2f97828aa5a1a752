"""etcd's errors in Leeward's words, and above all: whether it may have happened.

The messages are those of etcd's `rpctypes/error.go`, unchanged from 3.4 to 3.6. An error is definite only if etcd
raises it before it proposes anything to the cluster, when it refuses the whole request while applying it, or if gRPC
says that there was no connection. Everything else is indefinite.
"""

import grpc

from leeward.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LeaseNotFound,
    LeewardError,
    NotFound,
    PermissionDenied,
    StoreIndefinite,
    StoreUnavailable,
    Unauthenticated,
)

_DEFINITE = (
    # Said by the interceptor that `hasleader` asks for, before the request is looked at.
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: rpc not supported for learner",
    # Said instead of proposing.
    "etcdserver: too many requests",
    # Said when applied, on every member alike, with nothing written.
    "etcdserver: mvcc: database space exceeded",
    "auth: revision in header is old",
    "etcdserver: revision of auth store is old",
    # Said by gRPC when the request has not left this process.
    "failed to connect to all addresses",
    "errors resolving ",
    "DNS resolution failed",
)

_MAYBE_DONE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class RevisionGoneError(LeewardError):
    """The revision asked for is compacted. etcd does not say up to where; the caller turns this into Compacted."""


def translate(error: grpc.aio.AioRpcError, *, what: str) -> LeewardError:
    """The Leeward error for a failed call; `what` names the method and the member."""
    details = error.details() or ""
    if details.startswith(_DEFINITE):
        return StoreUnavailable(f"{what}: {details}")
    if error.code() in _MAYBE_DONE:
        return StoreIndefinite(f"{what}: {error.code().name}: {details}")
    return _refusal(error.code(), details, what) or StoreIndefinite(f"{what}: {error.code().name}: {details}")


def _refusal(code: grpc.StatusCode, details: str, what: str) -> LeewardError | None:
    """An answer that asking again would not change."""
    story = f"{what}: {details}"
    match code:
        case grpc.StatusCode.NOT_FOUND if "lease" in details:
            return LeaseNotFound(story)
        case grpc.StatusCode.OUT_OF_RANGE:
            return RevisionGoneError(story) if "compacted" in details else InvalidArgument(story)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(story)
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(story)
        case grpc.StatusCode.INVALID_ARGUMENT:
            # With rights enforced, "user name is empty" means that no client certificate named a user.
            return Unauthenticated(story) if "user name is empty" in details else InvalidArgument(story)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return _precondition(details, story)
        case grpc.StatusCode.UNIMPLEMENTED:
            return StoreUnavailable(f"{story} (is this an etcd of version 3.4 or later?)")
        case _:
            return None


def _precondition(details: str, story: str) -> LeewardError:
    if "already exist" in details:
        return AlreadyExists(story)
    if "not found" in details or "not granted" in details:
        return NotFound(story)
    return FailedPrecondition(story)
