"""Joining a unix socket and a stream of tunnel frames: the same on both ends of a tunnel."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import Unavailable

FRAME_BYTES = 256 * 1024
_RETRY_S = 0.05

Send = Callable[[pb.TunnelFrame], Awaitable[None]]


@dataclass(slots=True)
class Traffic:
    """Bytes that a tunnelled connection has carried so far."""

    from_socket_bytes: int = 0
    to_socket_bytes: int = 0


async def splice(connection: socket.socket, *, send: Send, frames: AsyncIterator[pb.TunnelFrame]) -> Traffic:
    """Carry bytes both ways until both sides have ended; `connection` must be non-blocking, and the caller closes it.

    Each side waits for the other to take what was sent, so that nothing piles up here. The end of one direction is
    passed on and leaves the other open. Raises Unavailable when either side breaks off.
    """
    traffic = Traffic()
    outward = asyncio.create_task(_outward(connection, send, traffic))
    inward = asyncio.create_task(_inward(connection, frames, traffic))
    tasks = (outward, inward)
    try:
        await asyncio.gather(*tasks)
    except OSError as error:
        raise Unavailable(f"a tunnelled connection broke off: {error}") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return traffic


async def _outward(connection: socket.socket, send: Send, traffic: Traffic) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(connection, FRAME_BYTES):
        await send(pb.TunnelFrame(data=data))
        traffic.from_socket_bytes += len(data)
    await send(pb.TunnelFrame(end=True))


async def _inward(connection: socket.socket, frames: AsyncIterator[pb.TunnelFrame], traffic: Traffic) -> None:
    loop = asyncio.get_running_loop()
    async for frame in frames:
        data = frame.data
        if data:
            await loop.sock_sendall(connection, data)
            traffic.to_socket_bytes += len(data)
        if frame.end:
            with contextlib.suppress(OSError):
                # It fails when the program behind the socket has closed it already, which is an end just as well.
                connection.shutdown(socket.SHUT_WR)
            return
    raise Unavailable("a tunnelled connection broke off: the stream ended without its last frame")


async def connect_unix(path: Path, *, timeout_s: float) -> socket.socket:
    """A non-blocking connection to the socket at `path`, which may still be in the making.

    Raises Unavailable after `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, str(path))
        except OSError as error:
            connection.close()
            if loop.time() >= deadline_s:
                raise Unavailable(f"nothing listens on {path}: {error}") from error
            await asyncio.sleep(_RETRY_S)
        except asyncio.CancelledError:
            connection.close()
            raise
        else:
            return connection
