"""What gRPC raises on the client's side, as errors of Leeward.

What matters most about a failed call is whether it may have happened. It cannot have when no connection came about, and
the server's own errors say it themselves. All else leaves it open.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from leeward.errors import DeadlineExceeded, LeewardError, Unavailable
from leeward.rpc.status import error_from, is_ours

_DETAILS_KEY = "grpc-status-details-bin"

# gRPC has no other sign than these words for a call that was never sent (tried with grpcio 1.85).
_NEVER_SENT = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")

# What grpc.aio reports when it cannot write any more, since the call has ended or its connection is gone.
_WRITE_FAILED = "Internal error from Core"

_OPEN_ENDED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)

_CERTIFICATE_EXPLANATIONS = (
    ("Hostname Verification Check failed", "its certificate does not carry the name that it has to prove"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not valid under the CA trusted here"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
)
_EXPLANATIONS = (
    ("Connection refused", "connection refused"),
    # A server that does not accept our certificate says so by closing; TLS 1.3 tells the client no more.
    ("Socket closed", "it closed the connection, as it does when it refuses a certificate or the lack of one"),
    ("Endpoint closing", "it accepts connections but does not answer"),
    ("resolv", "its name does not resolve"),
)


@contextmanager
def rpc_errors(
    peer: str, *, unreachable: type[Unavailable] = Unavailable, lost: type[Unavailable] | None = None
) -> Iterator[None]:
    """Around calls: what gRPC raises comes out as `to_leeward_error` makes it.

    Calls that stream requests need `leeward.rpc.client_streams.stream_errors` instead. Cancellation passes through.
    Mind that gRPC also raises CancelledError in a call whose channel is closed.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise to_leeward_error(error, peer=peer, unreachable=unreachable, lost=lost) from error
    except grpc.aio.UsageError as error:
        # Raised before anything is sent, as a rule because the channel has been closed.
        raise unreachable(f"cannot call {peer}: {error}") from error


def to_leeward_error(
    error: grpc.aio.AioRpcError,
    *,
    peer: str,
    unreachable: type[Unavailable] = Unavailable,
    lost: type[Unavailable] | None = None,
) -> LeewardError:
    """The error that the server raised, with all its details; or, where gRPC itself failed:

    - `unreachable` when the call was never sent,
    - `lost`, where given, when it may or may not have happened: broken off, timed out, cut short by the server. Never
      retriable.
      Where not, Unavailable with the reason CONNECTION_LOST and not retriable, or DeadlineExceeded,
    - else the error of that code.

    `peer` says in messages who was called, e.g. `the agent of host-a`.
    """
    status = _status(error)
    if status is not None and is_ours(status):
        return error_from(status)
    details = error.details() or ""
    if was_never_sent(error):
        return _unreachable(details, peer, unreachable)
    if lost is not None and error.code() in _OPEN_ENDED:
        return _not_retriable(lost(f"the call to {peer} broke off, and may have been carried out: {_words(error)}"))
    if error.code() is grpc.StatusCode.UNAVAILABLE or write_failed(error):
        message = f"the connection to {peer} broke: {_words(error)}"
        return _not_retriable(Unavailable(message, reason="CONNECTION_LOST"))
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{peer} did not answer in time")
    return error_from(status or Status(code=error.code().value[0], message=f"{peer}: {_words(error)}"))


def was_never_sent(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call certainly did not reach the server, since no connection came about."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and any(words in details for words in _NEVER_SENT)


def write_failed(error: grpc.aio.AioRpcError) -> bool:
    """Whether this is grpc.aio's own word for a failed write, which may hide how the server ended the call."""
    return error.code() is grpc.StatusCode.INTERNAL and (error.details() or "").startswith(_WRITE_FAILED)


def _unreachable(details: str, peer: str, kind: type[Unavailable]) -> Unavailable:
    metadata = {"cause": details}
    for sign, explanation in _CERTIFICATE_EXPLANATIONS:
        if sign in details:
            # Nothing changes by itself: somebody has to look at the certificates, or somebody poses as the peer.
            return _not_retriable(kind(f"cannot reach {peer}: {explanation}", reason="TLS_REFUSED", metadata=metadata))
    explanation = next((explanation for sign, explanation in _EXPLANATIONS if sign in details), details)
    return kind(f"cannot reach {peer}: {explanation}", metadata=metadata)


def _not_retriable(error: Unavailable) -> Unavailable:
    """The same error, saying that the call must not simply be sent again, whatever its class says."""
    error.retriable = False
    return error


def _status(error: grpc.aio.AioRpcError) -> Status | None:
    """The google.rpc.Status that came with the error, unless it contradicts the code of the call."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = Status.FromString(value)
            except DecodeError:
                # Not a status after all; the code of the call still tells enough.
                return None
            return status if status.code == error.code().value[0] else None
    return None


def _words(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name
