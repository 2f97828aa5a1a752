"""`leeward.v1.InstanceService`: what is done to one where it is."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.longrunning.operations_pb2 import Operation

from leeward.rpc.handlers import Context
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.public.convert import instance_requests as requests
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import requester_of, seconds
from leeward_controller.adapters.public.servicers.targets import target_of
from leeward_controller.domain.operation import OperationType
from leeward_controller.services.instance_power import InstancePower

_PlainRequest = (
    pb.UndeleteInstanceRequest
    | pb.PauseInstanceRequest
    | pb.UnpauseInstanceRequest
    | pb.SuspendInstanceRequest
    | pb.ResumeInstanceRequest
    | pb.CrashDumpInstanceRequest
)


class PowerMethods:
    """Part of the service."""

    def __init__(self, power: InstancePower) -> None:
        self._power = power

    async def StartInstance(self, request: pb.StartInstanceRequest, context: Context) -> Operation:
        return operation_to_wire(await self._power.start(target_of(request), requester_of(request)))

    async def StopInstance(self, request: pb.StopInstanceRequest, context: Context) -> Operation:
        grace_s = seconds(request, "grace_period")
        shown = await self._power.stop(target_of(request), requester_of(request), grace_period_s=grace_s)
        return operation_to_wire(shown)

    async def RebootInstance(self, request: pb.RebootInstanceRequest, context: Context) -> Operation:
        shown = await self._power.reboot(
            target_of(request),
            requester_of(request),
            mode=requests.reboot_mode(request),
            timeout_s=seconds(request, "timeout"),
        )
        return operation_to_wire(shown)

    async def DeleteInstance(self, request: pb.DeleteInstanceRequest, context: Context) -> Operation:
        shown = await self._power.delete(target_of(request), requester_of(request), purge=request.purge)
        return operation_to_wire(shown)

    async def UndeleteInstance(self, request: pb.UndeleteInstanceRequest, context: Context) -> Operation:
        return await self._plain(request, OperationType.UNDELETE)

    async def PauseInstance(self, request: pb.PauseInstanceRequest, context: Context) -> Operation:
        return await self._plain(request, OperationType.PAUSE)

    async def UnpauseInstance(self, request: pb.UnpauseInstanceRequest, context: Context) -> Operation:
        return await self._plain(request, OperationType.UNPAUSE)

    async def SuspendInstance(self, request: pb.SuspendInstanceRequest, context: Context) -> Operation:
        return await self._plain(request, OperationType.SUSPEND)

    async def ResumeInstance(self, request: pb.ResumeInstanceRequest, context: Context) -> Operation:
        return await self._plain(request, OperationType.RESUME)

    async def CrashDumpInstance(self, request: pb.CrashDumpInstanceRequest, context: Context) -> Operation:
        return await self._plain(request, OperationType.CRASH_DUMP)

    async def _plain(self, request: _PlainRequest, wanted: OperationType) -> Operation:
        return operation_to_wire(await self._power.plain(target_of(request), wanted, requester_of(request)))
