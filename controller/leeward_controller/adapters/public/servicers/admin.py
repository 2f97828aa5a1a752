"""`leeward.v1.AdminService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from leeward.rpc.handlers import Context
from leeward.rpc.server_auth import current_principal
from leeward.v1 import admin_service_pb2 as pb
from leeward_controller.adapters.public.convert.audit import report_to_wire
from leeward_controller.services.audit import AuditService


class AdminServicer:
    """What operators do with the cluster as a whole, over gRPC."""

    def __init__(self, audit: AuditService) -> None:
        self._audit = audit

    async def AuditCluster(self, request: pb.AuditClusterRequest, context: Context) -> pb.AuditClusterResponse:
        return report_to_wire(await self._audit.audit(repair=request.repair, principal=str(current_principal())))
