"""The migration tunnel, agent to agent over mutual TLS: bytes both ways, ends passed on, nobody let in by mistake."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import cast

import pytest

from leeward.agent.client import GrpcAgentClient, connect_agent
from leeward.agent.types import MigrationDestination
from leeward.agent.v1 import agent_pb2 as pb
from leeward.clock import RandomIds
from leeward.errors import PermissionDenied
from leeward.identity import Role
from leeward.pki import CertificateAuthority, init_ca
from leeward.rpc.server_auth import current_principal
from leeward_agent.core import Agent
from leeward_agent.ports import MigrationTransport
from leeward_agent.server import AgentServer
from leeward_agent.splice import connect_unix
from leeward_agent.tunnel import TunnelRoutes
from leeward_agent.tunnel_server import TunnelServer, caller_is_agent_of, memory_socket

_WAIT_S = 10.0
UID = "guest-one"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Ends:
    """A source host-a with its sockets, and a destination host-b whose programs a test plays."""

    def __init__(self, directory: Path, ca: CertificateAuthority) -> None:
        self.directory = directory
        self.ca = ca
        self.address = ""
        self.refuse = False

    @property
    def destination(self) -> Path:
        return self.directory / "b"

    async def admit(self, header: pb.TunnelHeader) -> None:
        if self.refuse:
            raise PermissionDenied(f"guest {header.uid} is not {header.source_node}'s to migrate")

    @asynccontextmanager
    async def route(self, node: str = "host-a") -> AsyncIterator[MigrationTransport]:
        """The sockets on the source, whose agent is that of `node`."""
        tls = self.ca.issue(Role.AGENT, node)
        routes = TunnelRoutes(node=node, directory=self.directory / "a", tls=tls)
        destination = MigrationDestination("host-b", self.address)
        async with routes.open(operation="operations/one", uid=UID, destination=destination) as route:
            assert isinstance(route.transport, MigrationTransport)
            yield route.transport

    @asynccontextmanager
    async def program(self, serve: Serve, path: Path | None = None) -> AsyncIterator[None]:
        """What listens on the destination: as a rule the QEMU that awaits the guest."""
        server = await asyncio.start_unix_server(serve, path or memory_socket(self.destination, UID))
        try:
            yield
        finally:
            server.close()


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    made = Ends(tmp_path, init_ca(tmp_path / "ca"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    tunnels = TunnelServer(
        libvirt_socket=made.destination / "libvirt",
        socket_directory=made.destination,
        admit=made.admit,
        check_caller=lambda node: caller_is_agent_of(current_principal(), node),
    )
    # A tunnel leads past the agent's core, which is not there.
    agent = cast(Agent, None)
    tls = made.ca.issue(Role.AGENT, "host-b")
    server = AgentServer(agent, tunnels, addresses=["127.0.0.1:0"], tls=tls, ids=RandomIds())
    await server.start()
    made.address = f"127.0.0.1:{server.ports[0]}"
    yield made
    await server.stop(0)


async def until_closed(path: Path) -> None:
    """Connect to a socket of the source; returns once the connection is closed from the other side."""
    connection = await connect_unix(path, timeout_s=_WAIT_S)
    with closing(connection):
        async with asyncio.timeout(_WAIT_S):
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""


async def send(connection: socket.socket, *, size_bytes: int, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        await asyncio.get_running_loop().sock_sendall(connection, bytes(size_bytes))


async def open_tunnel(peer: GrpcAgentClient, header: pb.TunnelHeader) -> None:
    async with peer.tunnel(timeout_s=_WAIT_S) as call:
        await call.write(pb.TunnelFrame(header=header))
        await anext(aiter(call))


async def test_bytes_arrive_whole_and_one_end_may_close_before_the_other(ends: Ends) -> None:
    data = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(200_000))

    async def answer_with_digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # read() returns at the end of the stream only: the half-close must come through, and the way back stay open.
        writer.write(hashlib.sha256(await reader.read()).digest())
        await writer.drain()
        writer.close()

    async with ends.program(answer_with_digest), ends.route() as transport, asyncio.timeout(_WAIT_S):
        reader, writer = await asyncio.open_unix_connection(transport.memory_socket)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(data).digest()
        writer.close()
    assert list((ends.directory / "a").iterdir()) == []


async def test_a_slow_reader_holds_the_writer_up(ends: Ends) -> None:
    async with AsyncExitStack() as stack:
        slow = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(slow.close)
        slow.bind(str(memory_socket(ends.destination, UID)))
        slow.listen()
        transport = await stack.enter_async_context(ends.route())
        connection = await connect_unix(transport.memory_socket, timeout_s=_WAIT_S)
        stack.callback(connection.close)
        with pytest.raises(TimeoutError):
            await send(connection, size_bytes=64 * 1024 * 1024, timeout_s=2)


async def test_the_end_of_the_route_breaks_every_connection(ends: Ends) -> None:
    ended = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()
        ended.set()
        writer.close()

    async with ends.program(wait_for_end, ends.destination / "libvirt"), asyncio.timeout(_WAIT_S):
        async with ends.route() as transport:
            reader, writer = await asyncio.open_unix_connection(transport.libvirt_socket)
            assert await reader.readexactly(1) == b"x"
        assert await reader.read() == b""
        await ended.wait()
        writer.close()


async def test_a_guest_that_is_not_the_sources_own_gets_no_tunnel(ends: Ends) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pytest.fail("the program on the destination was reached")

    async with ends.program(refuse):
        ends.refuse = True
        async with ends.route() as transport:
            for path in (transport.libvirt_socket, transport.memory_socket, transport.disk_socket):
                await until_closed(path)


async def test_nobody_can_speak_for_another_host(ends: Ends) -> None:
    header = pb.TunnelHeader(operation="o", uid=UID, source_node="host-a", target=pb.TUNNEL_TARGET_MEMORY)
    for role, name in ((Role.AGENT, "host-c"), (Role.CONTROLLER, "control-1"), (Role.ADMIN, "admin")):
        tls = ends.ca.issue(role, name)
        async with connect_agent("host-b", ends.address, tls) as peer:
            with pytest.raises(PermissionDenied):
                await open_tunnel(peer, header)


async def test_a_destination_without_a_program_closes_the_connection(ends: Ends) -> None:
    async with ends.route() as transport:
        await until_closed(transport.libvirt_socket)
