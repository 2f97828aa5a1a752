"""Serial consoles, both ways."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, TypeAlias

import grpc

from leeward.client.failover import FailoverChannel
from leeward.client.rounds import Unreachable
from leeward.errors import Unavailable
from leeward.rpc.client_streams import stream_errors
from leeward.v1.instance_service_pb2 import AttachConsoleRequest, AttachConsoleResponse

if TYPE_CHECKING:
    # Exists for type checkers only.
    from leeward.v1.instance_service_pb2_grpc import InstanceServiceAsyncStub

_Call: TypeAlias = "grpc.aio.StreamStreamCall[AttachConsoleRequest, AttachConsoleResponse]"

_INPUT_BYTES = 64 * 1024


async def attach(
    channel: FailoverChannel,
    stub: "InstanceServiceAsyncStub",
    name: str,
    input: AsyncIterator[bytes],
    *,
    take_over: bool,
) -> AsyncGenerator[bytes, None]:
    """What the guest writes, first an empty piece when it is attached; `input`, asked for from then on, goes to it.

    Until then it goes on to the next endpoint when one fails. Later that ends it: nobody knows what arrived.
    """
    rounds = channel.rounds(channel.limits.patience_s)
    while True:
        address = channel.endpoints.current
        call: _Call = stub.AttachConsole()
        sending: asyncio.Task[None] | None = None
        try:
            async with stream_errors(call, address, unreachable=Unreachable):
                await call.write(AttachConsoleRequest(name=name, take_over=take_over))
                while (answer := await _next(call, sending)) is not None:
                    if sending is None:
                        sending = asyncio.create_task(_send(call, input))
                    yield answer.output
            return
        except Unavailable as error:
            channel.endpoints.leave(address)
            if sending is not None:
                raise
            await rounds.failed(address, error)
        finally:
            call.cancel()
            if sending is not None:
                sending.cancel()
                await asyncio.wait((sending,))


async def _next(call: _Call, sending: "asyncio.Task[None] | None") -> AttachConsoleResponse | None:
    """The next message, None at the end. Raises what `input` raised."""
    reading = asyncio.ensure_future(call.read())
    try:
        while not reading.done():
            waiting = (reading,) if sending is None or sending.done() else (reading, sending)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if sending is not None and sending.done():
                sending.result()
        answer = reading.result()
        return answer if isinstance(answer, AttachConsoleResponse) else None
    finally:
        reading.cancel()


async def _send(call: _Call, input: AsyncIterator[bytes]) -> None:
    async for data in input:
        for start in range(0, len(data), _INPUT_BYTES):
            try:
                await call.write(AttachConsoleRequest(input=data[start : start + _INPUT_BYTES]))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The call has ended, which its reader tells better.
                return
    if not call.done():
        await call.done_writing()
