"""The part of AgentApi that is about serial consoles, over gRPC."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeAlias

import grpc

from leeward.agent import convert
from leeward.agent.calls import AgentCalls
from leeward.agent.types import ConsoleChunk
from leeward.agent.v1 import agent_pb2 as pb

INPUT_BYTES = 64 * 1024
"""As much as one message of AttachConsole takes to the guest."""

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.AttachConsoleRequest, pb.AttachConsoleResponse]"


class ConsoleCalls(AgentCalls):
    """Serial consoles."""

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        request = pb.ReadConsoleRequest(uid=uid, offset=offset, limit_bytes=limit_bytes)
        answer = await self._ask(lambda t: self._stub.ReadConsole(request, timeout=t))
        return convert.console_from_wire(answer)

    async def attach_console(
        self, *, uid: str, input: AsyncIterator[bytes], take_over: bool = False
    ) -> AsyncGenerator[bytes, None]:
        header = pb.AttachConsoleHeader(uid=uid, take_over=take_over)
        call: _Call = self._stub.AttachConsole(timeout=self._deadlines.longest_console_s)
        sending: asyncio.Task[None] | None = None
        try:
            async with self._stream_errors(call, acts=False):
                await call.write(pb.AttachConsoleRequest(header=header))
                while (answer := await _next(call, sending)) is not None:
                    if sending is None:
                        # Only now: what is typed must not be lost with a console that is refused.
                        sending = asyncio.create_task(_send_input(call, input))
                    yield answer.output
        finally:
            call.cancel()
            if sending is not None:
                sending.cancel()
                await asyncio.wait((sending,))


async def _next(call: _Call, sending: "asyncio.Task[None] | None") -> pb.AttachConsoleResponse | None:
    """The next answer, None at the end. Raises what `input` raised."""
    reading = asyncio.ensure_future(call.read())
    try:
        while not reading.done():
            waiting = (reading,) if sending is None or sending.done() else (reading, sending)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if sending is not None and sending.done():
                sending.result()
        answer = reading.result()
        return answer if isinstance(answer, pb.AttachConsoleResponse) else None
    finally:
        reading.cancel()


async def _send_input(call: _Call, input: AsyncIterator[bytes]) -> None:
    async for data in input:
        for start in range(0, len(data), INPUT_BYTES):
            try:
                await call.write(pb.AttachConsoleRequest(input=data[start : start + INPUT_BYTES]))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The call has ended, which its reader tells better.
                return
    if not call.done():
        await call.done_writing()
