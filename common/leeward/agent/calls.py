"""How an agent is called over gRPC: deadlines, and what becomes of errors."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from leeward.agent.v1 import agent_pb2_grpc
from leeward.errors import AgentIndefinite, AgentUnavailable, Unavailable
from leeward.rpc.client_errors import rpc_errors
from leeward.rpc.client_streams import stream_errors

_Response = TypeVar("_Response")

MIB = 1024 * 1024
_MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long calls may take, in seconds. What the guest itself is given (a grace period) is added."""

    read_s: float = 5.0
    probe_s: float = 15.0
    act_s: float = 60.0
    watch_s: float = 3600.0
    slowest_image_mib_s: float = 1.0
    longest_image_s: float = 4 * 3600.0  # For reading, where the size is not known before; and at most for anything.
    longest_console_s: float = 24 * 3600.0

    def moving(self, size_mib: float) -> float:
        """For a call that reads or writes this much."""
        return self.act_s + min(size_mib / self.slowest_image_mib_s, self.longest_image_s)

    def moving_gib(self, size_gib: float) -> float:
        """For a call that reads or writes this much."""
        return self.moving(size_gib * _MIB_PER_GIB)


class AgentCalls:
    """The stub and the ways of calling it.

    Without a connection a call raises AgentUnavailable, and the agent has not got it. A call that is broken off, or
    late, raises AgentIndefinite when it may have changed something, and AgentUnavailable when it only asked. What the
    agent itself raises keeps its class.
    """

    def __init__(self, channel: grpc.aio.Channel, *, node: str, deadlines: Deadlines | None = None) -> None:
        self._stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        self._peer = f"the agent of {node}"
        self._deadlines = deadlines or Deadlines()

    def _errors(self, *, acts: bool) -> AbstractContextManager[None]:
        return rpc_errors(self._peer, unreachable=AgentUnavailable, lost=_lost(acts=acts))

    def _stream_errors(self, call: grpc.aio.Call, *, acts: bool) -> AbstractAsyncContextManager[None]:
        return stream_errors(call, self._peer, unreachable=AgentUnavailable, lost=_lost(acts=acts))

    async def _ask(self, send: Callable[[float], Awaitable[_Response]], *, within_s: float | None = None) -> _Response:
        with self._errors(acts=False):
            return await send(self._deadlines.read_s if within_s is None else within_s)

    async def _act(self, send: Callable[[float], Awaitable[_Response]], *, within_s: float | None = None) -> _Response:
        with self._errors(acts=True):
            return await send(self._deadlines.act_s if within_s is None else within_s)

    async def _stream(
        self, send: "Callable[[], grpc.aio.UnaryStreamCall[Any, _Response]]", *, acts: bool
    ) -> AsyncGenerator[_Response, None]:
        with self._errors(acts=acts):
            call = send()
            try:
                async for answer in call:
                    yield answer
            finally:
                call.cancel()


def _lost(*, acts: bool) -> type[Unavailable]:
    return AgentIndefinite if acts else AgentUnavailable
