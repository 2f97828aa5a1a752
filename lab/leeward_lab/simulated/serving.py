"""The public API of a simulated cluster, on loopback in plain text, as clients of a real one see it."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from leeward import keys
from leeward.agent.types import DiskFormat
from leeward.identity import Principal, Role
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.adapters.public.peers import GrpcPeers
from leeward_controller.adapters.public.server import PublicServer
from leeward_controller.core import ControllerCore
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.records import Commit
from leeward_controller.services.everything import Services, build_services
from leeward_controller.services.operations import Peers
from leeward_lab.simulated.cluster import POOL_ID, SimulatedCluster, SimulatedController

_ADMIN = Principal.of(Role.ADMIN, "dev")
_TINY = bytes(1024**2)
_TINY_DIGEST = hashlib.sha256(_TINY).hexdigest()


@dataclass(frozen=True, slots=True)
class Served:
    """A controller with its public face. `address` is host:port."""

    controller: SimulatedController
    core: ControllerCore
    server: PublicServer
    address: str


def services_of(cluster: SimulatedCluster, core: ControllerCore, peers: Peers) -> Services:
    """What a replica's public API is served from."""
    return build_services(
        records=core.records,
        codec=StateCodec(),
        view=core.view,
        runner=core.runner,
        submitter=core.submitter,
        agents=cluster.linked_agents(),
        peers=peers,
        fence=core.fence,
        policy=core.policy.placement,
        deleted_retention_s=core.policy.deleted_retention_s,
        headroom_policy=core.policy.headroom,
        gives_back=core.policy.give_back.enabled,
        clock=cluster.clock,
        ids=cluster.ids,
    )


@asynccontextmanager
async def serving(cluster: SimulatedCluster, name: str, *, listen: str) -> AsyncIterator[Served]:
    """Start a controller of the cluster and serve its API on `listen` (port 0: any free one)."""
    controller = cluster.add_controller(name, address=listen)
    core = controller.start()
    peers = GrpcPeers(tls=None)
    services = services_of(cluster, core, peers)
    server = PublicServer(services, addresses=[listen], tls=None, ids=cluster.ids, plaintext_principal=_ADMIN)
    host, _, _ = listen.rpartition(":")
    await server.start()
    try:
        yield Served(controller, core, server, f"{host}:{server.ports[0]}")
    finally:
        await server.stop(0.5)
        await controller.stop()
        await peers.close()


async def ready(served: Served, *, nodes: int, within_s: float = 10.0) -> None:
    """Wait until every host has registered and the API can be used. Raises TimeoutError."""
    core = served.core

    def complete() -> bool:
        guarded = [n for n in core.view.nodes.values() if n.value.report.guard_armed]
        return core.runner.is_registered and len(guarded) == nodes

    if not await core.view.wait_for(complete, timeout_s=within_s):
        raise TimeoutError(f"the simulated cluster was not ready within {within_s:g} s")


async def stock(cluster: SimulatedCluster, core: ControllerCore) -> None:
    """Put in what launching needs: image `tiny` in project `default`, flavors `small` and `medium`."""
    agent = next(node.agent for node in cluster.nodes.values() if node.agent is not None)
    now = cluster.clock.now()
    file = await agent.store_image(
        pool_id=POOL_ID, digest=_TINY_DIGEST, format=DiskFormat.RAW, size_bytes=len(_TINY), chunks=_chunks()
    )
    image = Image(
        name="projects/default/images/tiny",
        uid=cluster.ids.new(),
        digest=file.digest,
        format=file.format,
        size_bytes=file.size_bytes,
        virtual_size_bytes=file.virtual_size_bytes,
        pool_ids=(POOL_ID,),
        create_time=now,
        created_by=str(_ADMIN),
    )
    commit = Commit().create(keys.image(image.name), image)
    for flavor, vcpus, memory_mib in (("small", 1, 512), ("medium", 2, 2048)):
        record = Flavor(flavor, cluster.ids.new(), vcpus, memory_mib, 1, now)
        commit.create(keys.flavor(flavor), record)
    await core.records.commit(commit)


async def _chunks() -> AsyncIterator[bytes]:
    yield _TINY
