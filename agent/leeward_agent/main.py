"""`leeward-agent`: builds everything from its settings, runs it, and stops without disturbing a guest."""

import argparse
import asyncio
import faulthandler
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from leeward import keys
from leeward.agent.convert import decode_node_report, encode_node_report
from leeward.clock import Clock, Ids, RandomIds
from leeward.errors import InvalidArgument, LeewardError
from leeward.identity import ETCD_SERVER_NAME, Principal, Role
from leeward.logs import set_up_logs
from leeward.rpc.channel import split_address
from leeward.rpc.server_auth import current_principal
from leeward.settings import load_settings
from leeward.store.etcd import EtcdStore, EtcdTls
from leeward.tls import TlsMaterial
from leeward_agent.arrival import Arrivals
from leeward_agent.claims import FileClaims
from leeward_agent.core import Agent, NodeIdentity
from leeward_agent.firmware import find_ovmf
from leeward_agent.guard.client import SocketGuardClient
from leeward_agent.guard.state import kernel_boot_id
from leeward_agent.heartbeat.clock import BoottimeClock
from leeward_agent.heartbeat.service import HeartbeatService
from leeward_agent.host import accelerator, make_directories
from leeward_agent.hypervisors.libvirt.driver import LibvirtHypervisor
from leeward_agent.hypervisors.simulated.driver import SimulatedHypervisor
from leeward_agent.hypervisors.simulated.host import SimulatedWorld
from leeward_agent.peers import GrpcPeers
from leeward_agent.ports import Hypervisor, Routes
from leeward_agent.power import in_memory
from leeward_agent.quarantine import DirectoryQuarantine
from leeward_agent.reconcile import Reconciler
from leeward_agent.server import AgentServer
from leeward_agent.settings import ENVIRONMENT_PREFIX, AgentSettings
from leeward_agent.storage.directory import DirectoryPool
from leeward_agent.tunnel import NativeRoutes, TunnelRoutes
from leeward_agent.tunnel_server import TunnelServer, caller_is_agent_of

_log = structlog.get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT. Wrong settings, and a host that cannot be served, end it with a message."""
    try:
        settings = _settings(arguments)
        set_up_logs(level=settings.log_level, node=settings.node)
        # A fault in a native library, as libvirt's, would end the agent without a word.
        faulthandler.enable()
        asyncio.run(_run(settings))
    except LeewardError as error:
        sys.exit(f"leeward-agent: {error.message}")


def _settings(arguments: Sequence[str] | None) -> AgentSettings:
    parser = argparse.ArgumentParser(prog="leeward-agent", description="Runs guests on this host for Leeward.")
    parser.add_argument("--config", type=Path, help="TOML file with the settings below, written_like_this")
    for name, field in AgentSettings.model_fields.items():
        several = str(field.annotation).startswith("tuple")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            action="append" if several else "store",
            help=f"{'may be repeated; ' if several else ''}default: {field.get_default(call_default_factory=True)}",
        )
    flags: dict[str, Any] = vars(parser.parse_args(arguments))
    file = flags.pop("config")
    return load_settings(AgentSettings, file=file, environment_prefix=ENVIRONMENT_PREFIX, overrides=flags)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs."""

    agent: Agent
    server: AgentServer
    heartbeats: HeartbeatService
    reconciler: Reconciler


async def _run(settings: AgentSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        parts = await _build(settings, stack, clock=BoottimeClock(), ids=RandomIds())
        await _serve(parts, stop, drain_timeout_s=settings.drain_timeout_s)


async def _serve(parts: _Parts, stop: asyncio.Event, *, drain_timeout_s: float) -> None:
    """Until `stop` is set, or a part fails, which is a defect and ends the agent; its heartbeats beat to the end."""
    heartbeats = asyncio.create_task(parts.heartbeats.run())
    others = [asyncio.create_task(parts.agent.run_events()), asyncio.create_task(parts.reconciler.run())]
    await parts.server.start()
    stopping = asyncio.create_task(stop.wait())
    tasks = [heartbeats, *others, stopping]
    _log.info("agent serves")
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    _log.info("agent stops; guests run on")
    await parts.server.drain(drain_timeout_s)
    # The heartbeats last: the next agent has the whole TTL to take over in.
    failed = [task for task in tasks if task.done() and task is not stopping]
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()


async def _build(settings: AgentSettings, stack: AsyncExitStack, *, clock: Clock, ids: Ids) -> _Parts:
    await asyncio.to_thread(make_directories, settings)
    tls = await asyncio.to_thread(_load_tls, settings)
    boot_id = kernel_boot_id()
    pools = []
    for directory in settings.pools:
        pool = await DirectoryPool.open(directory, ids)
        stack.push_async_callback(pool.close)
        pools.append(pool)
    _check_outside_pools(settings.console_directory, pools)
    hypervisor, migration_socket = await _hypervisor(settings, boot_id=boot_id, clock=clock, ids=ids)
    stack.push_async_callback(hypervisor.close)
    guard = SocketGuardClient(settings.guard_socket)
    stack.push_async_callback(guard.close)
    store = EtcdStore(settings.etcd_endpoints, tls=_etcd_tls(settings, tls), clock=clock)
    stack.push_async_callback(store.close)
    identity = _identity(settings, boot_id=boot_id, agent_id=ids.new())
    heartbeats = HeartbeatService(
        store=store,
        pools=pools,
        guard=guard,
        clock=clock,
        node=settings.node,
        boot_id=boot_id,
        agent_id=identity.agent_id,
        lease_key=keys.lease(settings.node),
        report=lambda: agent.describe_node(),
        encode=encode_node_report,
        decode=decode_node_report,
        guests=lambda: _in_memory(hypervisor),
        ttl_s=settings.lease_ttl_s,
    )
    agent = Agent(
        identity,
        hypervisor=hypervisor,
        pools=pools,
        claims=FileClaims(settings.state_directory / "claims", ids=ids),
        vitals=heartbeats,
        routes=_routes(settings, tls),
        peers=GrpcPeers(tls),
        quarantine=DirectoryQuarantine(settings.state_directory / "quarantine", ids=ids),
        clock=clock,
    )
    tunnels = TunnelServer(
        libvirt_socket=migration_socket,
        socket_directory=settings.socket_directory,
        admit=Arrivals(pools, get_guest=hypervisor.get_guest).admit,
        check_caller=_caller_must_be if tls else _anyone,
    )
    return _Parts(
        agent=agent,
        server=AgentServer(agent, tunnels, addresses=[settings.listen], tls=tls, ids=ids),
        heartbeats=heartbeats,
        reconciler=agent.reconciler(interval_s=settings.reconcile_interval_s),
    )


async def _hypervisor(settings: AgentSettings, *, boot_id: str, clock: Clock, ids: Ids) -> tuple[Hypervisor, Path]:
    """What runs the guests, and the socket on which it takes migrations from other hosts."""
    if settings.hypervisor == "simulated":
        host = SimulatedWorld().add_host(settings.node, clock=clock, writes_files=True)
        simulated = SimulatedHypervisor(host)
        control = settings.socket_directory / "simulated.control"
        await simulated.listen(control)
        return simulated, control
    how = await accelerator(settings, boot=boot_id, clock=clock, ids=ids)
    uefi = await asyncio.to_thread(find_ovmf)
    libvirt = LibvirtHypervisor(
        clock=clock, accelerator=how, uri=settings.libvirt_uri, uefi_code=uefi.code if uefi else None
    )
    return libvirt, settings.libvirt_socket


def _routes(settings: AgentSettings, tls: TlsMaterial | None) -> Routes:
    if settings.migration_transport == "tunnel":
        return TunnelRoutes(node=settings.node, directory=settings.socket_directory, tls=tls)
    if settings.hypervisor == "simulated":
        raise InvalidArgument.field("migration_transport", "must be tunnel where guests are simulated")
    return NativeRoutes(
        libvirt_uri=settings.migration_libvirt_uri,
        tls=settings.migration_tls,
        connections=settings.migration_connections,
        agent_tls=tls,
    )


async def _in_memory(hypervisor: Hypervisor) -> tuple[str, ...]:
    return tuple(guest.uid for guest in await hypervisor.list_guests() if in_memory(guest))


def _identity(settings: AgentSettings, *, boot_id: str, agent_id: str) -> NodeIdentity:
    address = settings.advertise or settings.listen
    split_address(address)
    return NodeIdentity(
        node=settings.node,
        boot_id=boot_id,
        agent_id=agent_id,
        address=address,
        lease_ttl_s=settings.lease_ttl_s,
        guard_delay_s=0.0,  # The heartbeats know, and put it into the report.
        console_directory=settings.console_directory,
        console_socket_directory=settings.console_socket_directory,
        labels=settings.labels,
        vcpus=settings.vcpus,
        memory_mib=settings.memory_mib,
        post_copy_mend_s=settings.post_copy_mend_s,
    )


def _check_outside_pools(console_directory: Path, pools: Sequence[DirectoryPool]) -> None:
    """QEMU holds its console log open, and the guard takes any open file below a shared pool's root for a disk there:
    it would kill guests whose disks are local. Raises InvalidArgument.
    """
    for pool in pools:
        if console_directory.resolve().is_relative_to(pool.root):
            raise InvalidArgument.field("console_directory", f"must not lie in a pool, as it does in {pool.root}")


def _load_tls(settings: AgentSettings) -> TlsMaterial | None:
    if settings.tls_directory is None:
        return None
    tls = TlsMaterial.load(settings.tls_directory)
    expected = Principal.of(Role.AGENT, settings.node)
    if tls.principal != expected:
        raise InvalidArgument.field("tls_directory", f"holds the certificate of {tls.principal}, not of {expected}")
    return tls


def _etcd_tls(settings: AgentSettings, tls: TlsMaterial | None) -> EtcdTls | None:
    if tls is None or not settings.etcd_tls:
        return None
    return EtcdTls(
        ca_pem=tls.ca_pem,
        cert_pem=tls.cert_pem,
        key_pem=tls.key_pem,
        server_names=dict.fromkeys(settings.etcd_endpoints, ETCD_SERVER_NAME),
    )


def _caller_must_be(source_node: str) -> None:
    caller_is_agent_of(current_principal(), source_node)


def _anyone(_source_node: str) -> None:
    """Without TLS the caller cannot be known."""


if __name__ == "__main__":
    main()
