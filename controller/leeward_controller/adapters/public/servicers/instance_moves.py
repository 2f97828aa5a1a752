"""`leeward.v1.InstanceService`: what gives one another place or size."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.longrunning.operations_pb2 import Operation

from leeward.rpc.handlers import Context
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.public.convert import instance_requests as requests
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of, seconds
from leeward_controller.adapters.public.servicers.targets import target_of
from leeward_controller.services.instance_moves import InstanceMoves


class MoveMethods:
    """Part of the service."""

    def __init__(self, moves: InstanceMoves) -> None:
        self._moves = moves

    async def MigrateInstance(self, request: pb.MigrateInstanceRequest, context: Context) -> Operation:
        grace_s = seconds(request, "grace_period")
        shown = await self._moves.migrate(
            target_of(request), requester_of(request), node=request.node, grace_period_s=grace_s
        )
        return operation_to_wire(shown)

    async def LiveMigrateInstance(self, request: pb.LiveMigrateInstanceRequest, context: Context) -> Operation:
        wish = requests.live_migration(request)
        return operation_to_wire(await self._moves.live_migrate(target_of(request), requester_of(request), wish))

    async def EvacuateInstance(self, request: pb.EvacuateInstanceRequest, context: Context) -> Operation:
        shown = await self._moves.evacuate(
            target_of(request), requester_of(request), node=request.node, allow_rebuild=request.allow_rebuild
        )
        return operation_to_wire(shown)

    async def ResizeInstance(self, request: pb.ResizeInstanceRequest, context: Context) -> Operation:
        shown = await self._moves.resize(
            target_of(request),
            requester_of(request),
            flavor=request.flavor,
            node=request.node,
            auto_confirm_after_s=seconds(request, "auto_confirm_after"),
        )
        return operation_to_wire(shown)

    async def ConfirmResize(self, request: pb.ConfirmResizeRequest, context: Context) -> Operation:
        return operation_to_wire(await self._moves.confirm_resize(target_of(request), requester_of(request)))

    async def RevertResize(self, request: pb.RevertResizeRequest, context: Context) -> Operation:
        return operation_to_wire(await self._moves.revert_resize(target_of(request), requester_of(request)))
