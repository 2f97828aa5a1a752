"""The public API's server: every service of the contract, health, reflection, roles."""

from collections.abc import Sequence

from google.longrunning import operations_pb2
from google.protobuf.descriptor import ServiceDescriptor

from leeward.clock import Ids
from leeward.identity import Principal, Role
from leeward.rpc.server import RpcServer, ServerConfig
from leeward.rpc.server_auth import Policy
from leeward.tls import TlsMaterial
from leeward.v1 import (
    admin_service_pb2,
    backup_policy_service_pb2,
    failover_service_pb2,
    flavor_service_pb2,
    group_service_pb2,
    image_service_pb2,
    instance_service_pb2,
    node_service_pb2,
    operation_service_pb2,
    project_service_pb2,
)
from leeward_controller.adapters.public.registering import register
from leeward_controller.adapters.public.servicers.admin import AdminServicer
from leeward_controller.adapters.public.servicers.backups import BackupPolicyServicer
from leeward_controller.adapters.public.servicers.catalog import FlavorServicer, ImageServicer
from leeward_controller.adapters.public.servicers.failovers import FailoverServicer
from leeward_controller.adapters.public.servicers.groups import GroupServicer
from leeward_controller.adapters.public.servicers.instances import InstanceServicer
from leeward_controller.adapters.public.servicers.nodes import NodeServicer
from leeward_controller.adapters.public.servicers.operations import LongRunningServicer, OperationServicer
from leeward_controller.adapters.public.servicers.projects import ProjectServicer
from leeward_controller.services.everything import Services

_OPERATORS = frozenset({Role.ADMIN})
_USERS = frozenset({Role.ADMIN, Role.CLIENT})

POLICY: Policy = {
    "/leeward.v1.InstanceService/": _USERS,
    "/leeward.v1.ImageService/": _USERS,
    "/leeward.v1.GroupService/": _USERS,
    "/leeward.v1.BackupPolicyService/": _USERS,
    "/google.longrunning.Operations/": _USERS,
    # A replica that does not drive an operation asks the one that does.
    "/leeward.v1.OperationService/": _USERS | {Role.CONTROLLER},
    # Everyone may look at what operators decide.
    "/leeward.v1.FlavorService/": _OPERATORS,
    "/leeward.v1.FlavorService/Get": _USERS,
    "/leeward.v1.FlavorService/List": _USERS,
    "/leeward.v1.ProjectService/": _OPERATORS,
    "/leeward.v1.ProjectService/Get": _USERS,
    "/leeward.v1.ProjectService/List": _USERS,
    "/leeward.v1.AdminService/": _OPERATORS,
    "/leeward.v1.AdminService/GetFailoverState": _USERS,
    "/leeward.v1.NodeService/": _OPERATORS,
    "/leeward.v1.NodeService/GetNode": _USERS,
    "/leeward.v1.NodeService/ListNodes": _USERS,
    "/leeward.v1.NodeService/WatchNodes": _USERS,
    "/leeward.v1.FailoverService/": _USERS,
    "/leeward.v1.FailoverService/DrillFailover": _OPERATORS,
}
"""Which roles may call what. Agents may call nothing here."""


class PublicServer:
    """The server, bound but not started. `ports` are those it is bound to, in the order of the addresses."""

    def __init__(
        self,
        services: Services,
        *,
        addresses: Sequence[str],
        tls: TlsMaterial | None,
        ids: Ids,
        plaintext_principal: Principal | None = None,
    ) -> None:
        """Raises FailedPrecondition when an address cannot be bound, InvalidArgument when it must not be."""
        self._services = services
        served = _served_by(services)
        config = ServerConfig(
            addresses=addresses,
            tls=tls,
            policy=POLICY,
            plaintext_principal=plaintext_principal,
            reflected_services=[service.full_name for service, _ in served],
        )
        self._server = RpcServer(config, ids=ids)
        self.ports = self._server.ports
        for service, servicer in served:
            register(self._server.grpc_server, service, servicer)

    async def start(self) -> None:
        """Begin to take calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """End every stream with what its client needs to resume elsewhere, and let other calls finish in time."""
        self._services.drain.begin()
        await self._server.stop(grace_s)


def _served_by(services: Services) -> list[tuple[ServiceDescriptor, object]]:
    longrunning: ServiceDescriptor = operations_pb2.DESCRIPTOR.services_by_name["Operations"]
    return [
        (
            instance_service_pb2.DESCRIPTOR.services_by_name["InstanceService"],
            InstanceServicer(services.instances),
        ),
        (
            node_service_pb2.DESCRIPTOR.services_by_name["NodeService"],
            NodeServicer(services.nodes, services.node_operations),
        ),
        (
            failover_service_pb2.DESCRIPTOR.services_by_name["FailoverService"],
            FailoverServicer(services.failovers, services.node_operations),
        ),
        (image_service_pb2.DESCRIPTOR.services_by_name["ImageService"], ImageServicer(services.images)),
        (flavor_service_pb2.DESCRIPTOR.services_by_name["FlavorService"], FlavorServicer(services.flavors)),
        (group_service_pb2.DESCRIPTOR.services_by_name["GroupService"], GroupServicer(services.groups)),
        (
            project_service_pb2.DESCRIPTOR.services_by_name["ProjectService"],
            ProjectServicer(services.projects),
        ),
        (
            backup_policy_service_pb2.DESCRIPTOR.services_by_name["BackupPolicyService"],
            BackupPolicyServicer(services.backup_policies),
        ),
        (
            admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
            AdminServicer(services.audit, services.failover_control, services.leftovers),
        ),
        (
            operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"],
            OperationServicer(services.operations),
        ),
        (longrunning, LongRunningServicer(services.operations)),
    ]
