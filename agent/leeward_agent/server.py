"""The agent's gRPC server: who may call what, and how it stops."""

from collections.abc import Sequence

from leeward.agent.v1 import agent_pb2, agent_pb2_grpc
from leeward.clock import Ids
from leeward.identity import Principal, Role
from leeward.rpc.server import RpcServer, ServerConfig
from leeward.tls import TlsMaterial
from leeward_agent.core import Agent
from leeward_agent.servicer import AgentServicer
from leeward_agent.streams import Streams
from leeward_agent.tunnel_server import TunnelServer

_SERVICE = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
_CONTROLLERS = frozenset({Role.CONTROLLER})
_BOTH = frozenset({Role.CONTROLLER, Role.AGENT})

POLICY = {
    f"/{_SERVICE}/": _CONTROLLERS,
    # A migrating agent looks at the destination before and after, and is the only one to open tunnels.
    f"/{_SERVICE}/DescribeNode": _BOTH,
    f"/{_SERVICE}/GetGuest": _BOTH,
    # What another agent copies from a pool that only this host has.
    f"/{_SERVICE}/ReadImage": _BOTH,
    f"/{_SERVICE}/ReadDisk": _BOTH,
    f"/{_SERVICE}/Tunnel": frozenset({Role.AGENT}),
}
PLAINTEXT_POLICY = {f"/{_SERVICE}/": _BOTH}
"""Without TLS nobody can be told from anybody else; such a server listens on loopback only."""

_STOP_GRACE_S = 2.0


class AgentServer:
    """Serves an agent on some addresses. Raises as `RpcServer` does."""

    def __init__(
        self, agent: Agent, tunnels: TunnelServer, *, addresses: Sequence[str], tls: TlsMaterial | None, ids: Ids
    ) -> None:
        self._agent = agent
        self._streams = Streams()
        config = ServerConfig(
            addresses=addresses,
            tls=tls,
            policy=POLICY if tls else PLAINTEXT_POLICY,
            plaintext_principal=None if tls else Principal.of(Role.CONTROLLER, "plaintext"),
        )
        self._server = RpcServer(config, ids=ids)
        servicer = AgentServicer(agent, tunnels, self._streams)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, self._server.grpc_server)

    @property
    def ports(self) -> tuple[int, ...]:
        """What it is bound to, an address each."""
        return self._server.ports

    async def start(self) -> None:
        """Begin to take calls."""
        await self._server.start()

    async def drain(self, timeout_s: float) -> None:
        """End watches so that they resume, finish calls under way within about `timeout_s`, and stop."""
        await self._server.set_serving(False)
        self._streams.drain()
        await self._agent.drain(timeout_s)
        await self.stop(_STOP_GRACE_S)

    async def stop(self, grace_s: float) -> None:
        """Stop without waiting for more than `grace_s`."""
        await self._server.stop(grace_s)
