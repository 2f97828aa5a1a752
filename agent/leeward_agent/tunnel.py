"""The source's end of migration tunnels: unix sockets that lead, agent to agent, to the destination's hypervisor."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from leeward.agent.client import GrpcAgentClient, connect_agent
from leeward.agent.types import MigrationDestination
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import LeewardError, StorageError
from leeward.rpc.channel import split_address
from leeward.tls import TlsMaterial
from leeward_agent.ports import MigrationRoute, MigrationTransport, NativeTransport
from leeward_agent.splice import splice
from leeward_agent.storage.names import checked_uid
from leeward_agent.tunnel_server import disk_socket, memory_socket

_log = structlog.get_logger(__name__)

_BACKLOG = 16
_CLOSING_S = 0.5
_LONGEST_TUNNEL_S = 24 * 3600.0
# sun_path in linux/un.h is 108 bytes with the terminating zero.
_UNIX_PATH_MAX = 107


@dataclass(frozen=True, slots=True)
class NativeRoutes:
    """Fulfils `Routes` past the agents: the fast way, which needs ports between hosts, and libvirt's own certificates.

    `libvirt_uri` is that of any host's libvirt, with `{host}` for where its agent is reached.
    """

    libvirt_uri: str
    tls: bool
    connections: int
    agent_tls: TlsMaterial | None

    @asynccontextmanager
    async def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AsyncGenerator[MigrationRoute, None]:
        """The way to the destination; unreachable, it shows at the first use of the peer, as AgentUnavailable."""
        bare, _ = split_address(destination.address)
        host = f"[{bare}]" if ":" in bare else bare
        transport = NativeTransport(
            libvirt_uri=self.libvirt_uri.format(host=host), host=host, tls=self.tls, connections=self.connections
        )
        async with connect_agent(destination.node, destination.address, self.agent_tls) as peer:
            yield MigrationRoute(peer=peer, transport=transport)


class TunnelRoutes:
    """Fulfils `Routes` over gRPC. The sockets are private to this user and gone when the migration is."""

    def __init__(self, *, node: str, directory: Path, tls: TlsMaterial | None) -> None:
        self._node = node
        self._directory = directory
        self._tls = tls

    @asynccontextmanager
    async def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AsyncGenerator[MigrationRoute, None]:
        """The way to the destination. Raises StorageError when a socket cannot be made.

        An unreachable destination shows at the first use of the peer, as AgentUnavailable.
        """
        transport = MigrationTransport(
            libvirt_socket=self._directory / f"{checked_uid(uid)}.libvirt",
            memory_socket=memory_socket(self._directory, uid),
            disk_socket=disk_socket(self._directory, uid),
            destination_memory_socket=memory_socket(self._directory, uid),
            destination_disk_socket=disk_socket(self._directory, uid),
        )
        async with connect_agent(destination.node, destination.address, self._tls) as peer:
            tunnels = {
                transport.libvirt_socket: pb.TUNNEL_TARGET_LIBVIRT,
                transport.memory_socket: pb.TUNNEL_TARGET_MEMORY,
                transport.disk_socket: pb.TUNNEL_TARGET_DISK,
            }
            async with contextlib.AsyncExitStack() as stack:
                for path, target in tunnels.items():
                    header = pb.TunnelHeader(operation=operation, uid=uid, source_node=self._node, target=target)
                    await stack.enter_async_context(_listening(path, peer, header))
                yield MigrationRoute(peer=peer, transport=transport)


@asynccontextmanager
async def _listening(path: Path, peer: GrpcAgentClient, header: pb.TunnelHeader) -> AsyncGenerator[None, None]:
    """Carries each connection to the socket at `path`, until the context ends; then all are broken off."""
    listener = _listen(path)
    connections: set[asyncio.Task[None]] = set()
    accepting = asyncio.create_task(_accept(listener, peer, header, connections))
    try:
        yield
    finally:
        _remove(path)
        if connections:
            # The programs behind them are done, and close them now.
            await asyncio.wait(connections, timeout=_CLOSING_S)
        tasks = {accepting, *connections}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        listener.close()


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _UNIX_PATH_MAX:
        raise StorageError(f"the path of a socket is too long: {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A file left by an agent that was killed would stand in the way.
        path.unlink(missing_ok=True)
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StorageError(f"cannot listen on {path}: {error}") from error
    return listener


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        # Should it stay, the next migration of this guest removes it.
        path.unlink()


async def _accept(
    listener: socket.socket, peer: GrpcAgentClient, header: pb.TunnelHeader, connections: set[asyncio.Task[None]]
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setblocking(False)
        task = asyncio.create_task(_carry(connection, peer, header))
        connections.add(task)
        task.add_done_callback(connections.discard)


async def _carry(connection: socket.socket, peer: GrpcAgentClient, header: pb.TunnelHeader) -> None:
    """One connection, to its end. Where it fails, closing it tells the program behind it."""
    log = _log.bind(uid=header.uid, target=pb.TunnelTarget.Name(header.target))
    with contextlib.closing(connection):
        try:
            async with peer.tunnel(timeout_s=_LONGEST_TUNNEL_S) as call:
                frames = aiter(call)
                await call.write(pb.TunnelFrame(header=header))
                # The destination's word that it is connected; an error of it shows here too.
                await anext(frames, None)
                traffic = await splice(connection, send=call.write, frames=frames)
                await call.done_writing()
        except LeewardError as error:
            log.warning("tunnel broke off", error=error.message)
        else:
            log.info("tunnel ended", sent_bytes=traffic.from_socket_bytes, received_bytes=traffic.to_socket_bytes)
