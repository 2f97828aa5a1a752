"""A channel over several endpoints, for generated stubs.

Unary calls go to the current endpoint and, where that is safe, to the next one when it fails. Safe is what was never
sent, what the server says it did not do, what only reads, and what bears a `request_id`: the server answers the same
id with what the first call began, so each changing call is given one here unless it has one.
Streams stay with one endpoint; `leeward.client.watching` resumes them.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from leeward.client.endpoints import Endpoints
from leeward.client.rounds import Rounds, Unreachable, was_not_done
from leeward.clock import Clock, Ids
from leeward.errors import DeadlineExceeded, Unavailable
from leeward.rpc.client_errors import rpc_errors

MessageT = TypeVar("MessageT", bound=Message)

_READS = ("Get", "List", "Wait", "Watch", "Plan", "Download")
_HARMLESS_TWICE = ("CancelOperation",)
_LONG_POLL = "WaitOperation"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds."""

    deadline_s: float = 30.0  # A unary call with all its attempts, unless the call is given a `timeout`.
    attempt_s: float = 5.0  # One attempt that may be repeated, when there is another endpoint.
    patience_s: float = 10.0  # Going round while no endpoint takes a call.
    stream_patience_s: float = 60.0  # The same for a watch, or a wait, that has to be resumed.


class FailoverChannel:
    """What a generated stub needs of a channel. Make the stubs with `for_stubs`."""

    def __init__(self, endpoints: Endpoints, *, limits: Limits, clock: Clock, ids: Ids) -> None:
        self.endpoints = endpoints
        self.limits = limits
        self.clock = clock
        self.ids = ids

    def for_stubs(self) -> grpc.aio.Channel:
        """This channel as the type that stubs are declared with; they use no more of it than is here."""
        return cast(grpc.aio.Channel, self)

    def rounds(self, patience_s: float) -> Rounds:
        """A new count of failures."""
        return Rounds(len(self.endpoints.addresses), patience_s=patience_s, clock=self.clock)

    def unary_unary(self, method: str, **kwargs: Any) -> "UnaryCall":
        """A call with one request and one response."""
        return UnaryCall(self, method, lambda channel: channel.unary_unary(method, **kwargs))

    def unary_stream(self, method: str, **kwargs: Any) -> "StreamCall":
        """A call that streams responses."""
        return StreamCall(self, lambda channel: channel.unary_stream(method, **kwargs))

    def stream_unary(self, method: str, **kwargs: Any) -> "PlainCall":
        """A call that streams requests, as gRPC has it, on the current endpoint."""
        return PlainCall(self, lambda channel: channel.stream_unary(method, **kwargs))

    def stream_stream(self, method: str, **kwargs: Any) -> "PlainCall":
        """A call that streams both ways, as gRPC has it, on the current endpoint."""
        return PlainCall(self, lambda channel: channel.stream_stream(method, **kwargs))


Build = Callable[[grpc.aio.Channel], Any]


class PlainCall:
    """A method of gRPC's own on the current endpoint: for `leeward.rpc.client_streams` around it."""

    def __init__(self, channel: FailoverChannel, build: Build) -> None:
        self._channel = channel
        self._build = build

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        endpoints = self._channel.endpoints
        return self._build(endpoints.channel(endpoints.current))(*args, **kwargs)


class UnaryCall:
    """A method that answers once; await it."""

    def __init__(self, channel: FailoverChannel, method: str, build: Build) -> None:
        self._channel = channel
        self._method = method.rpartition("/")[2]
        self._build = build

    async def __call__(self, request: Message, *, timeout: float | None = None) -> Any:
        """The response. `timeout` is in seconds and bounds all attempts together."""
        channel = self._channel
        request = with_request_id(request, channel.ids)
        until_s = channel.clock.monotonic_s() + (channel.limits.deadline_s if timeout is None else timeout)
        rounds = channel.rounds(channel.limits.patience_s)
        while True:
            address = channel.endpoints.current
            try:
                return await self._attempt(address, request, until_s)
            except (Unavailable, DeadlineExceeded) as error:
                _note(error, request)
                late = channel.clock.monotonic_s() >= until_s
                channel.endpoints.leave(address)
                if late and self._reads() and (said := rounds.said_rather_than(error)):
                    raise said from error
                if late or not (was_not_done(error) or self._may_repeat(request)):
                    raise
                await rounds.failed(address, error, until_s=until_s)

    async def _attempt(self, address: str, request: Message, until_s: float) -> Any:
        channel = self._channel
        seconds = max(0.0, until_s - channel.clock.monotonic_s())
        if len(channel.endpoints.addresses) > 1 and self._may_repeat(request) and self._method != _LONG_POLL:
            seconds = min(seconds, channel.limits.attempt_s)
        with rpc_errors(address, unreachable=Unreachable):
            return await self._build(channel.endpoints.channel(address))(request, timeout=seconds)

    def _may_repeat(self, request: Message) -> bool:
        harmless = self._reads() or self._method in _HARMLESS_TWICE
        return harmless or "request_id" in request.DESCRIPTOR.fields_by_name

    def _reads(self) -> bool:
        return self._method.startswith(_READS)


class StreamCall:
    """A method that streams responses: iterate over it. Closing the iterator ends the call."""

    def __init__(self, channel: FailoverChannel, build: Build) -> None:
        self._channel = channel
        self._build = build

    async def __call__(self, request: Message, *, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        """The messages from the current endpoint, which is left when it fails. `timeout` is in seconds."""
        endpoints = self._channel.endpoints
        address = endpoints.current
        call = self._build(endpoints.channel(address))(request, timeout=timeout)
        try:
            with rpc_errors(address, unreachable=Unreachable):
                async for message in call:
                    yield message
        except (Unavailable, DeadlineExceeded):
            endpoints.leave(address)
            raise
        finally:
            call.cancel()


def with_request_id(request: MessageT, ids: Ids) -> MessageT:
    """The request with a fresh `request_id` where it has the field and left it empty; the original is not touched."""
    given: str | None = getattr(request, "request_id", None)
    if given != "":
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    setattr(copy, "request_id", ids.new())  # noqa: B010 (only some requests have the field)
    return copy


def _note(error: Unavailable | DeadlineExceeded, request: Message) -> None:
    """Tell with an error whose call may have been carried out how to repeat it."""
    request_id = getattr(request, "request_id", "")
    if request_id and not was_not_done(error):
        error.metadata.setdefault("request_id", request_id)
