"""The public API on loopback, over real controllers, a store in memory and simulated hosts."""

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc

from leeward.agent.api import AgentApi
from leeward.clock import RandomIds, SystemClock
from leeward.errors import AgentUnavailable
from leeward.identity import Principal, Role
from leeward.rpc.channel import make_channel
from leeward.v1 import (
    flavor_service_pb2,
    flavor_service_pb2_grpc,
    group_service_pb2_grpc,
    image_pb2,
    image_service_pb2,
    image_service_pb2_grpc,
    instance_service_pb2_grpc,
    node_service_pb2_grpc,
    operation_service_pb2_grpc,
    project_service_pb2_grpc,
)
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.adapters.public.peers import GrpcPeers
from leeward_controller.adapters.public.server import PublicServer
from leeward_controller.core import ControllerCore, Policy
from leeward_controller.services.everything import Services, build_services
from leeward_lab.simulated.cluster import SimulatedCluster

WAIT_S = 15.0
ADMIN = Principal(Role.ADMIN, "tester")
IMAGE = bytes(range(256)) * 8192
SHA256 = hashlib.sha256(IMAGE).hexdigest()


class Face:
    """One controller's public API: its server, and stubs of all services on one channel."""

    def __init__(self, server: PublicServer, services: Services, address: str) -> None:
        self.server = server
        self.services = services
        self.address = address
        self.channel = make_channel(address, None)
        # The generated stubs are for both kinds of channels; their asynchronous types exist for the checker only.
        self.instances: Any = instance_service_pb2_grpc.InstanceServiceStub(self.channel)
        self.nodes: Any = node_service_pb2_grpc.NodeServiceStub(self.channel)
        self.images: Any = image_service_pb2_grpc.ImageServiceStub(self.channel)
        self.flavors: Any = flavor_service_pb2_grpc.FlavorServiceStub(self.channel)
        self.groups: Any = group_service_pb2_grpc.GroupServiceStub(self.channel)
        self.projects: Any = project_service_pb2_grpc.ProjectServiceStub(self.channel)
        self.watch: Any = operation_service_pb2_grpc.OperationServiceStub(self.channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(self.channel)

    async def stop(self) -> None:
        """Close the channel and the server."""
        await self.channel.close()
        await self.server.stop(0.0)

    async def ended(self, operation: operations_pb2.Operation) -> operations_pb2.Operation:
        """The operation when it is done."""
        async with asyncio.timeout(WAIT_S):
            while not operation.done:
                operation = await self.operations.WaitOperation(
                    operations_pb2.WaitOperationRequest(name=operation.name)
                )
        return operation

    async def upload(
        self, spec: image_service_pb2.UploadImageSpec | None = None, *, data: bytes = IMAGE, chunk_bytes: int = 500_000
    ) -> image_pb2.Image:
        """Upload an image in pieces, as a client would."""

        async def messages() -> AsyncIterator[image_service_pb2.UploadImageRequest]:
            yield image_service_pb2.UploadImageRequest(spec=spec or image_spec())
            for start in range(0, len(data), chunk_bytes):
                yield image_service_pb2.UploadImageRequest(chunk=data[start : start + chunk_bytes])

        image: image_pb2.Image = await self.images.UploadImage(messages())
        return image


def image_spec(image_id: str = "debian", **changes: Any) -> image_service_pb2.UploadImageSpec:
    """What describes IMAGE, with changes."""
    fields: dict[str, Any] = {
        "parent": "projects/p",
        "image_id": image_id,
        "format": image_pb2.DISK_FORMAT_RAW,
        "sha256": SHA256,
        "size_bytes": len(IMAGE),
    }
    return image_service_pb2.UploadImageSpec(**(fields | changes))


class PublicLab:
    """A cluster of simulated hosts with controllers, each with its public API. Guests write consoles below `files`."""

    def __init__(self, *, files: Path, nodes: int = 2, policy: Policy | None = None, local_pools: bool = False) -> None:
        self.clock, self.ids = SystemClock(), RandomIds()
        self.cluster = SimulatedCluster(
            clock=self.clock,
            ids=self.ids,
            rng=random.Random(1),
            nodes=nodes,
            files=files,
            policy=policy,
            local_pools=local_pools,
        )
        self.faces: list[Face] = []
        self._peers: list[GrpcPeers] = []

    async def __aenter__(self) -> "PublicLab":
        await self.cluster.start_nodes()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for face in self.faces:
            await face.stop()
        for peers in self._peers:
            await peers.close()
        await self.cluster.stop()
        self.cluster.check_parts()

    async def add_controller(self, *, principal: Principal = ADMIN) -> Face:
        """Start a controller and its API; returns when it knows every host that is on."""
        # The port must be known before the replica announces it.
        address = f"127.0.0.1:{_free_port()}"
        name = f"controller-{len(self.faces)}"
        core = self.cluster.add_controller(name, address=address).start()
        face = self.serve(core, address=address, principal=principal)
        await face.server.start()
        assert await core.view.wait_for(lambda: self._knows_nodes(core), timeout_s=WAIT_S)
        return face

    def serve(self, core: ControllerCore, *, address: str, principal: Principal) -> Face:
        """A face for a replica, not started."""
        peers = GrpcPeers(tls=None)
        self._peers.append(peers)
        services = build_services(
            records=core.records,
            codec=StateCodec(),
            view=core.view,
            runner=core.runner,
            submitter=core.submitter,
            agents=_DirectAgents(self.cluster),
            peers=peers,
            fence=core.fence,
            policy=core.policy.placement,
            headroom_policy=core.policy.headroom,
            deleted_retention_s=core.policy.deleted_retention_s,
            clock=self.clock,
            ids=self.ids,
        )
        server = PublicServer(services, addresses=[address], tls=None, ids=self.ids, plaintext_principal=principal)
        face = Face(server, services, f"127.0.0.1:{server.ports[0]}")
        self.faces.append(face)
        return face

    def _knows_nodes(self, core: ControllerCore) -> bool:
        on = {name for name, node in self.cluster.nodes.items() if node.agent is not None}
        known = {stored.value.node for stored in core.view.nodes.values()}
        registered = core.controller_id in {stored.value.controller for stored in core.view.controllers.values()}
        return registered and on <= known and on <= set(core.view.leases)


class _DirectAgents:
    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def at(self, *, node: str, address: str) -> AgentApi:
        agent = self._cluster.nodes[node].agent
        if agent is None:
            raise AgentUnavailable(f"nodes/{node} is off")
        return agent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def add_flavor(face: Face, name: str = "small", *, vcpus: int = 1, memory_mib: int = 512) -> None:
    """A flavor to make instances of."""
    request = flavor_service_pb2.CreateFlavorRequest(flavor_id=name)
    request.flavor.vcpus, request.flavor.memory_mib, request.flavor.disk_gib = vcpus, memory_mib, 1
    await face.flavors.CreateFlavor(request)
