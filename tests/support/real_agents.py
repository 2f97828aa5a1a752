"""`leeward-agent` and `leeward-guard` as programs on the laboratory's hosts, with an etcd beside them."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.etcd import etcd_cluster

from leeward import keys
from leeward.agent.client import GrpcAgentClient, connect_agent
from leeward.agent.convert import decode_node_report
from leeward.agent.types import NodeReport
from leeward.clock import RandomIds, SystemClock
from leeward.identity import Role
from leeward.pki import init_ca
from leeward.store.etcd import EtcdStore
from leeward_agent.storage.directory import DirectoryPool
from leeward_lab.guest.commands import LabError
from leeward_lab.hosts.cluster import Cluster
from leeward_lab.hosts.host import Host

PORT = 7444
# Enough to tell what every thread was doing when a process died.
_TOLD_LINES = 150
_UP_S = 60.0


@dataclass(slots=True)
class RealAgent:
    """One host's agent, and a client for it with a controller's certificate."""

    host: Host
    api: GrpcAgentClient
    environment: dict[str, str]

    @property
    def node(self) -> str:
        return self.host.name

    @property
    def local_pool(self) -> Path:
        """The directory of the pool that this host has alone."""
        return self.host.directory / "local-pool"

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    async def start(self) -> None:
        """Start the program; it is not ready yet."""
        await self.host.spawn(_program("leeward_agent.main"), name="agent", env=self.environment)


@dataclass(slots=True)
class RealAgents:
    """Agents by node, the store they write to, and their pool's id."""

    cluster: Cluster
    store: EtcdStore
    pool_id: str
    local_pool_ids: dict[str, str] = field(default_factory=dict)  # By node: the pool that it has alone.
    agents: dict[str, RealAgent] = field(default_factory=dict)

    async def until_reported(self, node: str, *, other_than: str = "") -> NodeReport:
        """The report of the node's agent, once the guard is armed; another agent's than the one with that id."""
        async with asyncio.timeout(_UP_S):
            while True:
                held = await self.store.get(keys.lease(node))
                if held is not None:
                    report = decode_node_report(held.value)
                    if report.guard_armed and report.agent_id != other_than:
                        return report
                await asyncio.sleep(0.05)


@asynccontextmanager
async def real_agents(
    directory: Path, *nodes: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[RealAgents]:
    """Powered-on hosts with libvirt, guard and agent, over mutual TLS; all gone at the end.

    `settings` are for all agents, beside those that they need.
    """
    ca = init_ca(directory / "ca")
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await Cluster.create(directory / "lab", "agents"))
        etcd = stack.enter_context(etcd_cluster(directory / "etcd", host=cluster.gateway))
        store = EtcdStore(etcd.endpoints, tls=None, clock=SystemClock())
        stack.push_async_callback(store.close)
        pool = await DirectoryPool.open_or_create(cluster.pool, RandomIds())
        await pool.close()
        made = RealAgents(cluster=cluster, store=store, pool_id=pool.pool_id)
        controller = ca.issue(Role.CONTROLLER, "control-1")
        for node in nodes:
            host = cluster.add_host(node)
            tls = ca.write(ca.issue(Role.AGENT, node))
            api = await stack.enter_async_context(connect_agent(node, f"{host.address}:{PORT}", controller))
            local = host.directory / "local-pool"
            local.mkdir(parents=True)
            local_pool = await DirectoryPool.open_or_create(local, RandomIds())
            await local_pool.close()
            made.local_pool_ids[node] = local_pool.pool_id
            values = {
                "node": node,
                "listen": f"{host.address}:{PORT}",
                "tls_directory": str(tls),
                "etcd_endpoints": etcd.endpoints[0],
                "etcd_tls": "false",
                "pools": f"{cluster.pool},{local}",
                "state_directory": str(host.directory / "agent"),
                "console_directory": str(directory / "console"),
                "guard_socket": "/run/guard.sock",
                **(settings or {}),
            }
            environment = {f"LEEWARD_AGENT_{name.upper()}": value for name, value in values.items()}
            made.agents[node] = RealAgent(host=host, api=api, environment=environment)
        for agent in made.agents.values():
            await agent.host.start()
            guard = [
                *_program("leeward_agent.guard.main"),
                "--socket",
                "/run/guard.sock",
                "--state",
                "/run/guard.state",
            ]
            await agent.host.spawn(guard, name="guard")
            await agent.start()
        for node in nodes:
            await made.until_reported(node)
        is_well = False
        try:
            yield made
            is_well = True
        finally:
            if not is_well:
                for node, agent in made.agents.items():
                    with suppress(LabError):  # Its host is off.
                        print(f"--- agent of {node}\n{agent.host.spawned('agent').tail(_TOLD_LINES)}")


def _program(module: str) -> list[str]:
    return [sys.executable, "-m", module]
