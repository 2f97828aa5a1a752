"""`leeward-controller`: builds a replica from its settings, serves, and hands over when it is told to stop."""

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import REGISTRY, start_http_server

from leeward import event_loop
from leeward.clock import Clock, Ids, RandomIds, SystemClock
from leeward.errors import InvalidArgument, LeewardError
from leeward.identity import ETCD_SERVER_NAME, Principal, Role
from leeward.logs import set_up_logs
from leeward.rpc.channel import split_address
from leeward.settings import load_settings
from leeward.store.etcd import EtcdStore, EtcdTls
from leeward.tls import TlsMaterial
from leeward_controller.adapters.agents import GrpcAgents
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.adapters.fence_agents import FenceAgents, FenceDevice, NoFence
from leeward_controller.adapters.metrics import ControllerCollector
from leeward_controller.adapters.public.peers import GrpcPeers
from leeward_controller.adapters.public.server import PublicServer
from leeward_controller.core import ControllerCore
from leeward_controller.ports import Fence
from leeward_controller.services.everything import build_services
from leeward_controller.settings import ENVIRONMENT_PREFIX, ControllerSettings

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT. Wrong settings end it with a message."""
    try:
        settings = _settings(arguments)
        set_up_logs(level=settings.log_level, controller=settings.advertise)
        event_loop.run(_run(settings))
    except LeewardError as error:
        sys.exit(f"leeward-controller: {error.message}")


def _settings(arguments: Sequence[str] | None) -> ControllerSettings:
    parser = argparse.ArgumentParser(prog="leeward-controller", description="Keeps guests running on all hosts.")
    parser.add_argument("--config", type=Path, help="TOML file with the settings below, written_like_this")
    for name, field in ControllerSettings.model_fields.items():
        if name == "fence":
            continue  # A table, which only the file can hold.
        several = str(field.annotation).startswith("list")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            action="append" if several else "store",
            help=field.description or f"default: {field.default}",
        )
    flags: dict[str, Any] = vars(parser.parse_args(arguments))
    file = flags.pop("config")
    return load_settings(ControllerSettings, file=file, environment_prefix=ENVIRONMENT_PREFIX, overrides=flags)


async def _run(settings: ControllerSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        core, server = await _build(settings, stack, clock=SystemClock(), ids=RandomIds())
        await server.start()
        log.info("controller serves", controller=core.controller_id)
        await _until_stopped(core, stop)
        log.info("controller stops; others take over")
        await server.stop(settings.drain_s)


async def _until_stopped(core: ControllerCore, stop: asyncio.Event) -> None:
    """Until `stop` is set; the core then gives up its keys at once, so that other replicas take over.

    A part of the core that fails is a defect and ends the process: another replica is better than half of one.
    """
    running = asyncio.ensure_future(core.run())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        running.cancel()
        await asyncio.wait({running})
    if not running.cancelled():
        running.result()


async def _build(
    settings: ControllerSettings, stack: AsyncExitStack, *, clock: Clock, ids: Ids
) -> tuple[ControllerCore, PublicServer]:
    split_address(settings.advertise)
    tls = await asyncio.to_thread(_load_tls, settings)
    store = EtcdStore(settings.etcd_endpoints, tls=_etcd_tls(settings, tls), clock=clock)
    stack.push_async_callback(store.close)
    agents = GrpcAgents(tls)
    stack.push_async_callback(agents.close)
    peers = GrpcPeers(tls=tls)
    stack.push_async_callback(peers.close)
    codec = StateCodec()
    core = ControllerCore(
        store=store,
        codec=codec,
        agents=agents,
        fence=_fence(settings, clock),
        clock=clock,
        ids=ids,
        rng=random.SystemRandom(),
        address=settings.advertise,
        policy=settings.policy(),
    )
    services = build_services(
        records=core.records,
        codec=codec,
        view=core.view,
        runner=core.runner,
        submitter=core.submitter,
        agents=agents,
        peers=peers,
        fence=core.fence,
        policy=core.policy.placement,
        deleted_retention_s=core.policy.deleted_retention_s,
        headroom_policy=core.policy.headroom,
        gives_back=core.policy.give_back.enabled,
        clock=clock,
        ids=ids,
    )
    # Without certificates nobody can be told from anybody else; such a server listens on loopback only.
    anybody = None if tls else Principal.of(Role.ADMIN, "plaintext")
    server = PublicServer(services, addresses=settings.listen, tls=tls, ids=ids, plaintext_principal=anybody)
    if settings.metrics_listen:
        host, port = split_address(settings.metrics_listen)
        REGISTRY.register(ControllerCollector(core))
        await asyncio.to_thread(start_http_server, port, host)
    return core, server


def _fence(settings: ControllerSettings, clock: Clock) -> Fence:
    if not settings.fence:
        return NoFence()
    devices = {
        node: FenceDevice(device.program, device.options, device.timeout_s) for node, device in settings.fence.items()
    }
    return FenceAgents(devices, clock=clock)


def _load_tls(settings: ControllerSettings) -> TlsMaterial | None:
    if settings.tls_directory is None:
        return None
    tls = TlsMaterial.load(settings.tls_directory)
    if tls.principal.role is not Role.CONTROLLER:
        raise InvalidArgument.field("tls_directory", f"holds the certificate of {tls.principal}, not of a controller")
    return tls


def _etcd_tls(settings: ControllerSettings, tls: TlsMaterial | None) -> EtcdTls | None:
    if tls is None:
        return None
    return EtcdTls(
        ca_pem=tls.ca_pem,
        cert_pem=tls.cert_pem,
        key_pem=tls.key_pem,
        server_names=dict.fromkeys(settings.etcd_endpoints, ETCD_SERVER_NAME),
    )


if __name__ == "__main__":
    main()
