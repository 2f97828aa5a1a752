"""`leeward.v1.AdminService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from leeward.rpc.handlers import Context
from leeward.rpc.server_auth import current_principal
from leeward.v1 import admin_service_pb2 as pb
from leeward_controller.adapters.public.convert.audit import report_to_wire
from leeward_controller.adapters.public.convert.failover_control import leftovers_to_wire, state_to_wire
from leeward_controller.adapters.public.convert.values import seconds
from leeward_controller.services.audit import AuditService
from leeward_controller.services.failover_control import FailoverControl
from leeward_controller.services.leftovers import LeftoverService


class AdminServicer:
    """What operators do with the cluster as a whole, over gRPC."""

    def __init__(self, audit: AuditService, failover: FailoverControl, leftovers: LeftoverService) -> None:
        self._audit = audit
        self._failover = failover
        self._leftovers = leftovers

    async def AuditCluster(self, request: pb.AuditClusterRequest, context: Context) -> pb.AuditClusterResponse:
        return report_to_wire(await self._audit.audit(repair=request.repair, principal=str(current_principal())))

    async def GetFailoverState(self, request: pb.GetFailoverStateRequest, context: Context) -> pb.FailoverState:
        return state_to_wire(await self._failover.state())

    async def DisarmFailover(self, request: pb.DisarmFailoverRequest, context: Context) -> pb.FailoverState:
        state = await self._failover.disarm(
            reason=request.reason,
            duration_s=seconds(request, "duration"),
            principal=str(current_principal()),
            validate_only=request.validate_only,
        )
        return state_to_wire(state)

    async def ArmFailover(self, request: pb.ArmFailoverRequest, context: Context) -> pb.FailoverState:
        state = await self._failover.arm(principal=str(current_principal()), validate_only=request.validate_only)
        return state_to_wire(state)

    async def ReleaseBrake(self, request: pb.ReleaseBrakeRequest, context: Context) -> pb.FailoverState:
        state = await self._failover.release_brake(
            reason=request.reason,
            principal=str(current_principal()),
            etag=request.etag,
            validate_only=request.validate_only,
        )
        return state_to_wire(state)

    async def ListLeftovers(self, request: pb.ListLeftoversRequest, context: Context) -> pb.ListLeftoversResponse:
        return leftovers_to_wire(await self._leftovers.list(request.name))
