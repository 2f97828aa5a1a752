"""What the agent and the guard say to each other: one JSON object a message over a unix SEQPACKET socket.

Times are seconds of CLOCK_BOOTTIME, which is one clock for all processes of a host and goes on while the host is
suspended: a host that slept past its deadline finds it passed when it wakes. CLOCK_MONOTONIC would stand still, and the
guests of a host that slept would live on beside their successors.
"""

import json
import math
import time
from dataclasses import asdict, dataclass

MAX_MESSAGE_BYTES = 65_536
MAX_AHEAD_S = 600.0  # A deadline further off than this is of another clock.
KILL_BOUND_S = 1.0  # How long after its deadline (and delay) the guard may need to have killed every guest.


class ProtocolError(ValueError):
    """A message that cannot be understood or must not be followed."""


@dataclass(frozen=True, slots=True)
class Arm:
    """The agent vouches for the guests until `deadline_s`, without a gap since `since_s`.

    `roots` are the directories of the shared pools; guests with a disk below one of them are killed at the deadline.
    `ttl_s` is how long one renewal vouches at most, as the agent has told the cluster.
    """

    since_s: float
    deadline_s: float
    ttl_s: float
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disarm:
    """Stop watching. Refused while a guest with a disk on a shared pool runs."""


@dataclass(frozen=True, slots=True)
class Status:
    """Only tell how things stand."""


Request = Arm | Disarm | Status


@dataclass(frozen=True, slots=True)
class Answer:
    """How things stand after the request. `error` is empty unless it was refused.

    `delay_s` bounds how long after its deadline the guard needs until no guest is left; `clear` says that it has
    passed and that none is.
    """

    armed: bool
    expired: bool
    deadline_s: float
    ttl_s: float
    delay_s: float
    error: str = ""
    clear: bool = False


def boottime_s() -> float:
    """The clock of all times in this protocol."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def encode_request(request: Request) -> bytes:
    """The message for a request."""
    return json.dumps({"request": type(request).__name__.lower(), **asdict(request)}).encode()


def decode_request(data: bytes) -> Request:
    """The request in a message. Raises ProtocolError."""
    content = _object(data)
    match content.get("request"):
        case "arm":
            return _decode_arm(content)
        case "disarm":
            return Disarm()
        case "status":
            return Status()
        case other:
            raise ProtocolError(f"unknown request {other!r}")


def encode_answer(answer: Answer) -> bytes:
    """The message for an answer."""
    return json.dumps(asdict(answer)).encode()


def decode_answer(data: bytes) -> Answer:
    """The answer in a message. Raises ProtocolError."""
    content = _object(data)
    armed, expired, error = content.get("armed"), content.get("expired"), content.get("error")
    if not isinstance(armed, bool) or not isinstance(expired, bool) or not isinstance(error, str):
        raise ProtocolError("an answer lacks armed, expired or error")
    return Answer(
        armed=armed,
        expired=expired,
        deadline_s=_seconds(content, "deadline_s"),
        ttl_s=_seconds(content, "ttl_s"),
        delay_s=_seconds(content, "delay_s"),
        error=error,
        clear=content.get("clear") is True,
    )


def check_arm(arm: Arm, *, now_s: float) -> None:
    """Raises ProtocolError when following the message would be wrong: another clock, or roots that cover everything."""
    if arm.deadline_s > now_s + MAX_AHEAD_S:
        raise ProtocolError(
            f"the deadline is {arm.deadline_s - now_s:.0f} s ahead; at most {MAX_AHEAD_S:.0f} s are possible"
        )
    if arm.since_s > now_s or arm.since_s > arm.deadline_s:
        raise ProtocolError("since_s is later than now, or than the deadline")
    for root in arm.roots:
        parts = root.split("/")
        if not root.startswith("/") or "" in parts[1:] or "." in parts or ".." in parts:
            raise ProtocolError(f"the root {root!r} is not a plain absolute path below /")


def _decode_arm(content: dict[str, object]) -> Arm:
    roots = content.get("roots")
    if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise ProtocolError("roots is not a list of paths")
    return Arm(
        since_s=_seconds(content, "since_s"),
        deadline_s=_seconds(content, "deadline_s"),
        ttl_s=_seconds(content, "ttl_s"),
        roots=tuple(str(root) for root in roots),
    )


def _object(data: bytes) -> dict[str, object]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ProtocolError("a message is not JSON") from error
    if not isinstance(content, dict):
        raise ProtocolError("a message is not an object")
    return content


def _seconds(content: dict[str, object], name: str) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ProtocolError(f"{name} is not a number of seconds")
    return float(value)
