"""Who gets in: real servers and clients on loopback with real certificates."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from leeward.clock import SeededIds
from leeward.errors import (
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NoNodeFits,
    PermissionDenied,
    Unavailable,
    Violation,
    WrongState,
)
from leeward.identity import Principal, Role, agent_server_name
from leeward.pki import CertificateAuthority, init_ca
from leeward.rpc.channel import make_channel, split_address
from leeward.rpc.client_errors import rpc_errors
from leeward.rpc.client_streams import stream_errors
from leeward.rpc.server import RpcServer, ServerConfig
from leeward.rpc.server_auth import current_principal
from leeward.tls import TlsMaterial

SERVICE = "leeward.test.Probe"
NODE = "host-a"
POLICY = {
    f"/{SERVICE}/": frozenset({Role.CONTROLLER, Role.ADMIN}),
    f"/{SERVICE}/AdminOnly": frozenset({Role.ADMIN}),
}


class Probe:
    """Handlers of all four kinds that answer with who is calling, or raise what the request names."""

    def __init__(self) -> None:
        self.stream_closed = asyncio.Event()

    async def unary(self, request: bytes, context: object) -> bytes:
        self._raise_if_asked(request)
        return str(current_principal()).encode()

    async def collect(self, requests: AsyncIterator[bytes], context: object) -> bytes:
        received = [each async for each in requests]
        self._raise_if_asked(received[-1])
        return b",".join(received)

    async def stream(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        try:
            yield str(current_principal()).encode()
            self._raise_if_asked(request)
            if request == b"for ever":
                while True:
                    yield b"x" * 1024
        finally:
            self.stream_closed.set()

    async def chat(self, requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            self._raise_if_asked(request)
            yield request

    async def writer(self, request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        await context.write(b"written")
        self._raise_if_asked(request)

    async def aborts(self, request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        await context.abort(grpc.StatusCode.DATA_LOSS, "as gRPC does it")

    def _raise_if_asked(self, request: bytes) -> None:
        match request:
            case b"wrong state":
                raise WrongState("web is STOPPED", violations=[Violation("STATE", "web", "must be ACTIVE")])
            case b"defect":
                raise ZeroDivisionError("the secret of the house")
            case b"nothing fits":
                raise NoNodeFits("no", violations=[Violation("MEMORY", f"nodes/n{n}", "ä" * 900) for n in range(2_000)])

    def handler(self) -> grpc.GenericRpcHandler:
        kinds = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "AdminOnly": grpc.unary_unary_rpc_method_handler(self.unary),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Writer": grpc.unary_stream_rpc_method_handler(self.writer),
            "Aborts": grpc.unary_unary_rpc_method_handler(self.aborts),
        }
        return grpc.method_handlers_generic_handler(SERVICE, kinds)


@asynccontextmanager
async def serving(config: ServerConfig) -> AsyncIterator[tuple[RpcServer, Probe]]:
    server, probe = RpcServer(config, ids=SeededIds(1)), Probe()
    server.grpc_server.add_generic_rpc_handlers([probe.handler()])
    await server.start()
    try:
        yield server, probe
    finally:
        await server.stop(0)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return init_ca(tmp_path / "pki")


class Agent:
    """The agent of host-a, and connections to it."""

    def __init__(self, port: int, probe: Probe) -> None:
        self.target = f"127.0.0.1:{port}"
        self.probe = probe
        self.channels: list[grpc.aio.Channel] = []

    def connect(
        self, tls: TlsMaterial | None, *, server_name: str | None = agent_server_name(NODE)
    ) -> grpc.aio.Channel:
        self.channels.append(make_channel(self.target, tls, server_name=server_name))
        return self.channels[-1]


@pytest.fixture
async def agent(authority: CertificateAuthority) -> AsyncIterator[Agent]:
    config = ServerConfig(addresses=["127.0.0.1:0"], tls=authority.issue(Role.AGENT, NODE), policy=POLICY)
    async with serving(config) as (server, probe):
        agent = Agent(server.ports[0], probe)
        try:
            yield agent
        finally:
            await asyncio.gather(*(channel.close() for channel in agent.channels))


async def call(channel: grpc.aio.Channel, method: str = "Unary", request: bytes = b"") -> bytes:
    with rpc_errors("the agent"):
        answer: bytes = await channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=10)
        return answer


async def read(
    stream: "grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]", into: list[bytes]
) -> None:
    while isinstance(message := await stream.read(), bytes):
        into.append(message)


def calls_of_every_kind(
    channel: grpc.aio.Channel, request: bytes, into: list[bytes]
) -> list[Callable[[], Awaitable[object]]]:
    """One call of each kind, whose last request is `request`; what streams answer goes to `into`."""

    async def one_to_many(method: str) -> None:
        with rpc_errors("the agent"):
            await read(channel.unary_stream(f"/{SERVICE}/{method}")(request, timeout=10), into)

    async def many_to_one() -> None:
        sending = channel.stream_unary(f"/{SERVICE}/Collect")(iter([b"first", request]), timeout=10)
        async with stream_errors(sending, "the agent"):
            await sending

    async def many_to_many() -> None:
        sending = channel.stream_stream(f"/{SERVICE}/Chat")(iter([b"first", request]), timeout=10)
        async with stream_errors(sending, "the agent"):
            await read(sending, into)

    return [
        lambda: call(channel, request=request),
        lambda: one_to_many("Stream"),
        lambda: one_to_many("Writer"),
        many_to_one,
        many_to_many,
    ]


async def test_the_right_role_gets_in_and_is_known_by_name(agent: Agent, authority: CertificateAuthority) -> None:
    assert await call(agent.connect(authority.issue(Role.CONTROLLER, "control-1"))) == b"controller:control-1"
    assert await call(agent.connect(authority.issue(Role.ADMIN, "root")), "AdminOnly") == b"admin:root"


async def test_the_wrong_role_is_denied_on_calls_of_every_kind(agent: Agent, authority: CertificateAuthority) -> None:
    alice = agent.connect(authority.issue(Role.CLIENT, "alice"))
    received: list[bytes] = []
    for make in calls_of_every_kind(alice, b"", received):
        with pytest.raises(PermissionDenied, match=r"client:alice may not call .* the role admin or controller"):
            await make()
    assert received == []
    with pytest.raises(PermissionDenied, match="needs the role admin"):
        await call(agent.connect(authority.issue(Role.CONTROLLER, "control-1")), "AdminOnly")


async def test_without_a_certificate_nothing_gets_in(agent: Agent, authority: CertificateAuthority) -> None:
    with pytest.raises(Unavailable, match="refuses a certificate or the lack of one"):
        await call(agent.connect(None))
    trusting = grpc.ssl_channel_credentials(authority.ca_pem)
    options = [("grpc.ssl_target_name_override", agent_server_name(NODE))]
    async with grpc.aio.secure_channel(agent.target, trusting, options) as channel:
        with pytest.raises(Unavailable, match="refuses a certificate or the lack of one"):
            await call(channel)


async def test_a_certificate_of_another_ca_does_not_get_in(
    agent: Agent, authority: CertificateAuthority, tmp_path: Path
) -> None:
    rogue = init_ca(tmp_path / "rogue").issue(Role.ADMIN, "root")
    with pytest.raises(Unavailable, match="its certificate is not valid under the CA trusted here") as caught:
        await call(agent.connect(rogue))
    assert (caught.value.specific_reason, caught.value.retriable) == ("TLS_REFUSED", False)
    trusting = TlsMaterial(ca_pem=authority.ca_pem, cert_pem=rogue.cert_pem, key_pem=rogue.key_pem)
    with pytest.raises(Unavailable, match="refuses a certificate"):
        await call(agent.connect(trusting))


async def test_a_node_cannot_pose_as_another(agent: Agent, authority: CertificateAuthority) -> None:
    controller = authority.issue(Role.CONTROLLER, "control-1")
    for name in (agent_server_name("host-b"), "controller.leeward.internal", None):
        with pytest.raises(Unavailable, match="does not carry the name that it has to prove") as caught:
            await call(agent.connect(controller, server_name=name))
        assert caught.value.specific_reason == "TLS_REFUSED"


async def test_a_clients_certificate_cannot_serve(authority: CertificateAuthority) -> None:
    with pytest.raises(InvalidArgument, match="admin:root is no server's certificate"):
        RpcServer(
            ServerConfig(addresses=["127.0.0.1:0"], tls=authority.issue(Role.ADMIN, "root"), policy=POLICY),
            ids=SeededIds(1),
        )


async def test_errors_arrive_whole_from_calls_of_every_kind(agent: Agent, authority: CertificateAuthority) -> None:
    channel = agent.connect(authority.issue(Role.CONTROLLER, "control-1"))
    received: list[bytes] = []
    for make in calls_of_every_kind(channel, b"wrong state", received):
        with pytest.raises(WrongState, match="web is STOPPED") as caught:
            await make()
        assert caught.value.violations == (Violation("STATE", "web", "must be ACTIVE"),)
    assert received == [b"controller:control-1", b"written", b"first"]


async def write_for_ever(
    call: "grpc.aio.StreamUnaryCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]",
) -> None:
    async with stream_errors(call, "the agent"):
        while True:
            await call.write(b"x" * 65_536)


@pytest.mark.parametrize("method", ["Collect", "Chat"])
async def test_a_refusal_is_seen_by_a_client_that_is_still_writing(
    agent: Agent, authority: CertificateAuthority, method: str
) -> None:
    alice = agent.connect(authority.issue(Role.CLIENT, "alice"))
    for _ in range(20):  # gRPC alone hides the refusal on some of the first kind and nearly all of the second.
        kind = alice.stream_unary if method == "Collect" else alice.stream_stream
        writing = kind(f"/{SERVICE}/{method}")(timeout=10)
        with pytest.raises(PermissionDenied):
            await write_for_ever(writing)


async def test_a_defect_is_told_by_its_incident_only_and_logged_with_it(
    agent: Agent, authority: CertificateAuthority
) -> None:
    channel = agent.connect(authority.issue(Role.CONTROLLER, "control-1"))
    with capture_logs() as logs, pytest.raises(InternalError) as caught:
        await call(channel, request=b"defect")
    incident = caught.value.metadata["incident"]
    assert caught.value.message == f"an internal error occurred, incident {incident}"
    assert [(entry["event"], entry["incident"], entry["method"]) for entry in logs] == [
        ("unexpected exception", incident, f"/{SERVICE}/Unary")
    ]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)


async def test_grpcs_own_aborts_pass_unchanged(agent: Agent, authority: CertificateAuthority) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.connect(authority.issue(Role.ADMIN, "root")).unary_unary(f"/{SERVICE}/Aborts")(b"", timeout=10)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "as gRPC does it")


async def test_an_error_about_thousands_of_nodes_reaches_a_client_with_default_limits(
    authority: CertificateAuthority,
) -> None:
    config = ServerConfig(addresses=["127.0.0.1:0"], tls=authority.issue(Role.CONTROLLER, "c"), policy=POLICY)
    root = authority.issue(Role.ADMIN, "root")
    options = [("grpc.ssl_target_name_override", "controller.leeward.internal")]
    async with (
        serving(config) as (server, _),
        grpc.aio.secure_channel(f"127.0.0.1:{server.ports[0]}", root.channel_credentials(), options) as channel,
    ):
        with pytest.raises(NoNodeFits) as caught:
            await call(channel, request=b"nothing fits")
    assert 0 < len(caught.value.violations) < 2_000


async def test_a_stream_whose_client_leaves_is_closed_on_the_server(
    agent: Agent, authority: CertificateAuthority
) -> None:
    channel = agent.connect(authority.issue(Role.CONTROLLER, "control-1"))
    with capture_logs() as logs:
        stream = channel.unary_stream(f"/{SERVICE}/Stream")(b"for ever")
        assert await stream.read() == b"controller:control-1"
        stream.cancel()
        await asyncio.wait_for(agent.probe.stream_closed.wait(), 10)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_the_principal_is_that_of_each_call(agent: Agent, authority: CertificateAuthority) -> None:
    names = [f"control-{n}" for n in range(8)]
    channels = [agent.connect(authority.issue(Role.CONTROLLER, name)) for name in names]
    answers = await asyncio.gather(*(call(channel) for _ in range(5) for channel in channels))
    assert answers == [f"controller:{name}".encode() for name in names] * 5


async def test_plain_text_is_for_loopback_and_has_the_principal_it_was_given() -> None:
    dev = Principal(Role.ADMIN, "dev")
    config = ServerConfig(addresses=["127.0.0.1:0"], tls=None, policy=POLICY, plaintext_principal=dev)
    async with (
        serving(config) as (server, _),
        make_channel(f"127.0.0.1:{server.ports[0]}", None) as channel,
    ):
        assert await call(channel) == b"admin:dev"
    with pytest.raises(InvalidArgument, match="needs TLS"):
        RpcServer(ServerConfig(addresses=["0.0.0.0:0"], tls=None, policy={}), ids=SeededIds(1))


async def test_a_port_that_is_taken_is_refused(authority: CertificateAuthority) -> None:
    tls = authority.issue(Role.CONTROLLER, "c")
    async with serving(ServerConfig(addresses=["127.0.0.1:0"], tls=tls, policy={})) as (server, _):
        taken = f"127.0.0.1:{server.ports[0]}"
        with pytest.raises(FailedPrecondition, match=f"cannot listen on {taken}"):
            RpcServer(ServerConfig(addresses=[taken], tls=tls, policy={}), ids=SeededIds(1))


@pytest.mark.parametrize(
    ("address", "expected"),
    [("a.example:1", ("a.example", 1)), ("10.0.0.1:65535", ("10.0.0.1", 65_535)), ("[::1]:7", ("::1", 7))],
)
def test_addresses_are_split(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["", "host", ":1", "::1", "::1:7", "[::1]", "host:x", "host:65536", "host:-1"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(InvalidArgument):
        split_address(address)
