"""Agents in this process, over simulated hypervisors and a pool in memory; reached directly or over loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from leeward.agent.api import AgentApi
from leeward.agent.client import connect_agent
from leeward.agent.types import MigrationDestination, PoolSource, SlotObservation
from leeward.agent.v1 import agent_pb2 as pb
from leeward.clock import RandomIds, SystemClock
from leeward.errors import AgentUnavailable
from leeward.identity import Role
from leeward.pki import init_ca
from leeward_agent.claims import FileClaims
from leeward_agent.core import Agent, NodeIdentity
from leeward_agent.hypervisors.simulated.driver import SimulatedHypervisor
from leeward_agent.hypervisors.simulated.guest import SimulatedTiming
from leeward_agent.hypervisors.simulated.host import SimulatedWorld
from leeward_agent.ports import MigrationRoute, MigrationTransport
from leeward_agent.quarantine import DirectoryQuarantine
from leeward_agent.reconcile import Reconciler
from leeward_agent.server import AgentServer
from leeward_agent.storage.memory import MemoryPool, MemoryPoolContents, PoolFault
from leeward_agent.tunnel_server import TunnelServer

_DRAIN_S = 10.0
_TIMING = SimulatedTiming(start_s=0.01, shutdown_s=0.05, step_s=0.02)


class FixedVitals:
    """Heartbeats that a test owns."""

    guard_armed = True

    def __init__(self) -> None:
        self.legitimate = True

    def is_shared(self, pool_id: str) -> bool:
        return True

    def may_start_guests(self, pool_id: str) -> bool:
        return self.legitimate

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        return ()


class DirectRoutes:
    """Migrations within one process need no tunnel."""

    def __init__(self, hosts: "dict[str, AgentHost]") -> None:
        self._hosts = hosts

    @asynccontextmanager
    async def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AsyncIterator[MigrationRoute]:
        nowhere = [Path("/nonexistent")] * 5
        yield MigrationRoute(peer=self._hosts[destination.node].agent, transport=MigrationTransport(*nowhere))


class DirectPeers:
    """Agents of one process reach each other without a connection."""

    def __init__(self, hosts: "dict[str, AgentHost]") -> None:
        self._hosts = hosts

    @asynccontextmanager
    async def connect(self, source: PoolSource) -> AsyncIterator[Agent]:
        host = self._hosts[source.node]
        if not host.reachable:
            raise AgentUnavailable(f"the agent of {source.node} cannot be reached")
        yield host.agent


class AgentHost:
    """One simulated host: its agent may be restarted, its guests run on."""

    def __init__(self, lab: "AgentLab", node: str, pools: Sequence[MemoryPoolContents]) -> None:
        self.node = node
        self.address = "127.0.0.1:0"
        self.vitals = FixedVitals()
        self.reachable = True
        self.machine = lab.world.add_host(node, clock=lab.clock, timing=_TIMING)
        self.hypervisor = SimulatedHypervisor(self.machine)
        self.directory = lab.directory / node
        self._lab = lab
        self.pools = [MemoryPool(contents, lab.clock, node=node) for contents in pools]
        self._life = AsyncExitStack()
        self._server: AgentServer
        self.agent: Agent
        self.api: AgentApi

    async def start(self) -> None:
        """A new agent on this host."""
        lab = self._lab
        identity = NodeIdentity(
            node=self.node,
            boot_id="boot",
            agent_id=lab.ids.new(),
            address=self.address,
            lease_ttl_s=5,
            guard_delay_s=1,
            console_directory=self.directory / "console",
            console_socket_directory=self.directory / "serial",
            labels={"rack": "r1"},
        )
        self.agent = Agent(
            identity,
            hypervisor=self.hypervisor,
            pools=self.pools,
            claims=FileClaims(self.directory / "claims", ids=lab.ids),
            vitals=self.vitals,
            routes=DirectRoutes(lab.hosts),
            peers=DirectPeers(lab.hosts),
            quarantine=DirectoryQuarantine(self.quarantine, ids=lab.ids),
            clock=lab.clock,
        )
        self._life.push_async_callback(self.agent.drain, 1)
        events = asyncio.create_task(self.agent.run_events())
        self._life.push_async_callback(_cancelled, events)
        await asyncio.sleep(0)
        self.api = await self._reach() if lab.transport != "core" else self.agent

    async def _reach(self) -> AgentApi:
        lab = self._lab
        mutual_tls = lab.transport == "grpc-mtls"
        tunnels = TunnelServer(
            libvirt_socket=Path("/nonexistent"),
            socket_directory=self.directory,
            admit=_anybody,
            check_caller=lambda node: None,
        )
        server = AgentServer(
            self.agent,
            tunnels,
            addresses=[self.address],
            tls=lab.ca.issue(Role.AGENT, self.node) if mutual_tls else None,
            ids=lab.ids,
        )
        await server.start()
        self._server = server
        self.address = f"127.0.0.1:{server.ports[0]}"
        self._life.push_async_callback(server.drain, 1)
        tls = lab.ca.issue(Role.CONTROLLER, "control-1") if mutual_tls else None
        return await self._life.enter_async_context(connect_agent(self.node, self.address, tls))

    async def restart(self) -> None:
        """The agent's process ends, and another one starts."""
        await self.stop()
        await self.start()

    async def drain(self) -> None:
        """The agent is asked to stop, and does so in good order."""
        await self._server.drain(_DRAIN_S)

    async def break_off(self) -> None:
        """Every connection to the agent ends, whatever it is doing."""
        await self._server.stop(0)

    async def stop(self) -> None:
        """The agent ends; what it was doing is not waited for long."""
        await self._life.aclose()

    def reconciler(self) -> Reconciler:
        """Reconciles when told to."""
        return self.agent.reconciler(interval_s=3600)

    @property
    def quarantine(self) -> Path:
        """Where leftovers are noted."""
        return self.directory / "quarantine"

    def ignore_acpi(self, uid: str) -> None:
        """The guest no longer reacts to its power button."""
        self.machine.ignores_acpi.add(uid)

    def lose_pool(self) -> None:
        """This host can no longer read or write the shared pool."""
        self._lab.pool.faults[self.node] = PoolFault.FAILING
        self.machine.lose_storage(self._lab.pool.pool_id)

    def find_pool(self) -> None:
        """It can again."""
        self._lab.pool.faults[self.node] = PoolFault.NONE
        self.machine.restore_storage(self._lab.pool.pool_id)

    def slow_migrations(self) -> None:
        """Migrations away from here take long enough to do something meanwhile."""
        self.machine.timing = replace(_TIMING, memory_mib_s=1.0, dirty_mib_s=0.0)

    def slow_memory(self) -> None:
        """Writing and reading a guest's memory takes long enough to do something meanwhile."""
        self.machine.timing = replace(_TIMING, memory_mib_s=1.0)

    def write_console(self, uid: str, data: bytes) -> None:
        """The guest writes to its serial console."""
        path = self.directory / "console" / f"{uid}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class AgentLab:
    """Hosts that share one pool and one world. `transport`: "core", "grpc" or "grpc-mtls"."""

    def __init__(self, directory: Path, *, transport: str) -> None:
        self.directory = directory
        self.transport = transport
        self.clock = SystemClock()
        self.ids = RandomIds()
        self.world = SimulatedWorld()
        self.pool = MemoryPoolContents("pool")
        self.ca = init_ca(directory / "ca")
        self.hosts: dict[str, AgentHost] = {}

    async def add(self, node: str, *, pools: Sequence[MemoryPoolContents] | None = None) -> AgentHost:
        """A new host with its agent running."""
        host = AgentHost(self, node, [self.pool] if pools is None else pools)
        self.hosts[node] = host
        await host.start()
        return host

    async def __aenter__(self) -> "AgentLab":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in self.hosts.values():
            await host.stop()


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _anybody(header: pb.TunnelHeader) -> None:
    """No tunnel is opened here that anybody would have to judge."""
