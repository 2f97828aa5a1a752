"""A simulated host with everything that runs on it: guests, guard, agent, both heartbeats."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING

from leeward import keys
from leeward.agent.convert import decode_node_report, encode_node_report
from leeward.agent.types import GuestSpec, GuestState, MigrationDestination, PoolSource, PutAside, StopCause
from leeward.errors import AgentUnavailable
from leeward_agent.claims import MemoryClaims
from leeward_agent.core import Agent, NodeIdentity
from leeward_agent.guard.simulated import SimulatedGuard
from leeward_agent.heartbeat.service import HeartbeatService
from leeward_agent.hypervisors.simulated.driver import SimulatedHypervisor
from leeward_agent.ports import MigrationRoute, MigrationTransport
from leeward_agent.quarantine import Leftover
from leeward_agent.storage.memory import MemoryPool, MemoryPoolContents
from leeward_lab.simulated.tasks import Life
from leeward_lab.virtual_time import thaw

if TYPE_CHECKING:
    from leeward_lab.simulated.cluster import SimulatedCluster

_NOWHERE = Path("/nonexistent")


class _MemoryQuarantine:
    """Leftovers, kept for the test that asks."""

    def __init__(self) -> None:
        self.leftovers: list[Leftover] = []

    async def keep(self, leftover: Leftover, definition: str) -> None:
        self.leftovers.append(leftover)

    async def kept(self) -> tuple[PutAside, ...]:
        return tuple(leftover.told() for leftover in self.leftovers)


class SimulatedNode:
    """One host. Its claims survive its agent, its guard survives the agent too, and nothing survives its power."""

    def __init__(self, cluster: "SimulatedCluster", name: str) -> None:
        self.name = name
        self.address = f"{name}.simulated:7444"
        self.host = cluster.world.add_host(
            name,
            clock=cluster.clock_of(name),
            timing=cluster.timing,
            vcpus=cluster.node_vcpus,
            memory_mib=cluster.node_memory_mib,
            writes_files=cluster.files is not None,
        )
        self.quarantine = _MemoryQuarantine()
        self.agent: Agent | None = None
        self.heartbeats: HeartbeatService | None = None
        self.boot_id = ""
        self.killed_by_guard: list[tuple[float, str]] = []
        self._cluster = cluster
        self._clock = cluster.clock_of(name)
        self._claims = MemoryClaims()
        self._guard: SimulatedGuard | None = None
        self._host_life = Life()
        self._agent_life = Life()

    async def power_on(self) -> None:
        """Boot: a new boot id, guard and agent start."""
        if not self.host.powered:
            self.host.power_on()
        self.boot_id = self._cluster.ids.new()
        self._host_life = Life()
        self._guard = SimulatedGuard(self._clock, kill=self._kill_guests, delay_s=0.05)
        self._host_life.spawn(self._guard.run())
        await self.start_agent()

    async def power_off(self) -> None:
        """Cut the power: guests, guard and agent are gone in this instant."""
        self.host.power_off()
        await self.kill_agent()
        await self._host_life.end()

    def lose_guard(self) -> None:
        """Let the guard answer its agent no more, which says so in its heartbeat: it is not armed."""
        assert self._guard is not None
        self._guard.reachable = False

    async def start_agent(self) -> None:
        """Start the agent on the running host."""
        cluster = self._cluster
        self._agent_life = Life(self.agent_process)
        pools = [self._pool(contents) for contents in cluster.pools_of(self.name)]
        hypervisor = SimulatedHypervisor(self.host)
        assert self._guard is not None
        heartbeats = HeartbeatService(
            store=cluster.linked_store(self.name),
            pools=pools,
            guard=self._guard,
            clock=self._clock,
            node=self.name,
            boot_id=self.boot_id,
            agent_id=cluster.ids.new(),
            lease_key=keys.lease(self.name),
            report=lambda: agent.describe_node(),
            encode=encode_node_report,
            decode=decode_node_report,
            guests=self._running,
            ttl_s=cluster.lease_ttl_s,
        )
        agent = Agent(
            NodeIdentity(
                node=self.name,
                boot_id=self.boot_id,
                agent_id=cluster.ids.new(),
                address=self.address,
                lease_ttl_s=cluster.lease_ttl_s,
                guard_delay_s=0.0,
                console_directory=self._console_directory(),
                console_socket_directory=_NOWHERE,
            ),
            hypervisor=hypervisor,
            pools=pools,
            claims=self._claims,
            vitals=heartbeats,
            routes=self,
            peers=self,
            quarantine=self.quarantine,
            clock=self._clock,
        )
        self.agent, self.heartbeats = agent, heartbeats
        self._agent_life.spawn(heartbeats.run())
        self._agent_life.spawn(agent.run_events())
        self._agent_life.spawn(agent.reconciler(interval_s=5.0).run())

    def _pool(self, contents: MemoryPoolContents) -> MemoryPool:
        files, is_shared = self._cluster.files, self._cluster.is_shared(contents)
        kind = MemoryPool if files is None else _FilesPool
        root = files.with_name(f"{files.name}-{contents.pool_id}") if files is not None and not is_shared else files
        return kind(contents, self._clock, node=self.name, root=root, is_network=is_shared)

    def _console_directory(self) -> Path:
        """One for all hosts: what a guest prints goes on in the same file wherever it runs, as the story reads it."""
        if self._cluster.files is None:
            return _NOWHERE
        directory = self._cluster.files / "consoles"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    async def kill_agent(self) -> None:
        """SIGKILL the agent; its guests and the guard go on. It ends even a process that is stopped."""
        thaw(self.agent_process)
        agent, self.agent = self.agent, None
        if agent is not None:
            await agent.end_at_once()
        await self._agent_life.end()

    @property
    def agent_process(self) -> str:
        """The name by which the agent's process can be frozen."""
        return f"agent of {self.name}"

    def agent_context(self) -> Context:
        """In which the agent works on what it is asked."""
        return self._agent_life.context()

    async def agent_ended(self) -> None:
        """Wait until the agent that runs now is gone."""
        await self._agent_life.ended.wait()

    @property
    def failure(self) -> BaseException | None:
        """What ended a part that should have gone on, if anything did."""
        return self._agent_life.failure or self._host_life.failure

    @asynccontextmanager
    async def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AsyncIterator[MigrationRoute]:
        """The way to another host for a migration: within one process there is nothing to tunnel."""
        peer = self._cluster.nodes[destination.node]
        if peer.agent is None or not self._cluster.network.reaches(self.name, destination.node):
            raise AgentUnavailable(f"nodes/{destination.node} cannot be reached from nodes/{self.name}")
        yield MigrationRoute(
            peer=peer.agent, transport=MigrationTransport(_NOWHERE, _NOWHERE, _NOWHERE, _NOWHERE, _NOWHERE)
        )

    @asynccontextmanager
    async def connect(self, source: PoolSource) -> AsyncIterator[Agent]:
        """Another host's agent, for copying from its pools."""
        peer = self._cluster.nodes[source.node]
        if peer.agent is None or not self._cluster.network.reaches(self.name, source.node):
            raise AgentUnavailable(f"nodes/{source.node} cannot be reached from nodes/{self.name}")
        yield peer.agent

    async def _running(self) -> tuple[str, ...]:
        return tuple(uid for uid, guest in sorted(self.host.guests.items()) if guest.state is GuestState.RUNNING)

    def _kill_guests(self, roots: tuple[Path, ...]) -> None:
        for guest in list(self.host.guests.values()):
            if guest.active and any(guest.disks.root.is_relative_to(root) for root in roots):
                self.killed_by_guard.append((self._cluster.clock.monotonic_s(), guest.spec.uid))
                self.host.stop(guest, StopCause.CRASHED)


class _FilesPool(MemoryPool):
    """A pool in memory whose guests keep their console and boot count in files."""

    async def create_disk(self, spec: GuestSpec) -> None:
        await super().create_disk(spec)
        self.disk_path(spec.uid).parent.mkdir(parents=True, exist_ok=True)

    async def delete_disk(self, uid: str) -> None:
        await super().delete_disk(uid)
        shutil.rmtree(self.disk_path(uid).parent, ignore_errors=True)
