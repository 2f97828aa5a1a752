"""A gRPC server with everything that each of ours has: TLS, identity, errors, health, limits."""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from leeward.clock import Ids
from leeward.errors import FailedPrecondition, InvalidArgument
from leeward.identity import Principal, Role
from leeward.rpc.channel import PING_INTERVAL_S, PING_TIMEOUT_S, Option, message_options, split_address
from leeward.rpc.server_auth import Policy, ServerAuth
from leeward.rpc.server_errors import ServerErrors
from leeward.tls import TlsMaterial

_HEALTH_SERVICE = "grpc.health.v1.Health"
_REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
_EVERYBODY = frozenset(Role)
_MIN_PING_INTERVAL_S = 2


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What a server listens on and whom it serves.

    `addresses` are `host:port` (port 0: any free one) or `unix:/path`. Without `tls` it is plain text, which only
    loopback and unix addresses may be, and every caller is `plaintext_principal`.
    """

    addresses: Sequence[str]
    tls: TlsMaterial | None
    policy: Policy
    plaintext_principal: Principal | None = None
    reflected_services: Sequence[str] = ()
    extra_interceptors: Sequence[grpc.aio.ServerInterceptor] = field(default=())


class RpcServer:
    """A server that is not started yet. Add servicers to `grpc_server`, then `start`.

    `ports` are those it is bound to, one for each address in order (1 for a unix socket).
    """

    def __init__(self, config: ServerConfig, *, ids: Ids) -> None:
        """Binds the addresses. Raises FailedPrecondition when one cannot be, InvalidArgument when one must not be."""
        _check(config)
        policy = {**config.policy, f"/{_HEALTH_SERVICE}/": _EVERYBODY, f"/{_REFLECTION_SERVICE}/": _EVERYBODY}
        auth = ServerAuth(policy, plaintext_principal=None if config.tls else config.plaintext_principal)
        self.grpc_server = grpc.aio.server(
            interceptors=[ServerErrors(ids), auth, *config.extra_interceptors], options=server_options()
        )
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] (public, says its source)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc_server)
        if config.reflected_services:
            _add_reflection(self.grpc_server, config.reflected_services)
        self.ports = tuple(_bind(self.grpc_server, address, config.tls) for address in config.addresses)

    async def start(self) -> None:
        """Begin to take calls."""
        await self.grpc_server.start()

    async def set_serving(self, serving: bool, services: Iterable[str] = ("",)) -> None:
        """What the health service answers for these services; the empty name is the whole server. True at first."""
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for service in services:
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, tell health watchers, and end those that still run after `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        await self.grpc_server.stop(grace_s)

    async def wait_for_termination(self) -> None:
        """Until `stop` has finished."""
        await self.grpc_server.wait_for_termination()


def server_options() -> tuple[Option, ...]:
    """The options of every server."""
    return (
        *message_options(),
        # A second server on the same port must fail to start, and not take half of the calls.
        ("grpc.so_reuseport", 0),
        # Clients ping idle connections. Those that ping more often than this are cut off ("too many pings").
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_S * 1000),
        # The server looks after its clients too, so that a watch whose client has vanished is let go.
        ("grpc.keepalive_time_ms", PING_INTERVAL_S * 2 * 1000),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_S * 1000),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_S * 1000),
        ("grpc.http2.max_pings_without_data", 0),
    )


def _check(config: ServerConfig) -> None:
    if config.tls is not None:
        if not config.tls.principal.serves:
            raise InvalidArgument.field("tls", f"{config.tls.principal} is no server's certificate")
        return
    for address in config.addresses:
        if not _is_local(address):
            raise InvalidArgument.field(
                "addresses", f"{address} needs TLS: plain text is for loopback and unix sockets"
            )


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name could resolve to anything; this one is defined to be loopback (RFC 6761, section 6.3).
        return host == "localhost"


def _bind(server: grpc.aio.Server, address: str, tls: TlsMaterial | None) -> int:
    bind: Callable[[], int] = (
        (lambda: server.add_insecure_port(address))
        if tls is None
        else (lambda: server.add_secure_port(address, tls.server_credentials()))
    )
    try:
        return bind()
    except RuntimeError as error:
        raise FailedPrecondition(f"cannot listen on {address}: {error}") from error


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    # Imported here since agents serve without it, and do not install it.
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection([*services, _HEALTH_SERVICE, reflection.SERVICE_NAME], server)
