"""What the calls of `leeward.v1.NodeService` ask for and answer, beside nodes themselves."""

from datetime import datetime

from leeward.rpc.status import status_of
from leeward.v1 import node_service_pb2 as pb
from leeward_controller.adapters.public.convert.operation import operation_to_wire
from leeward_controller.adapters.public.convert.values import timestamp
from leeward_controller.domain.node_operation import OnFailure
from leeward_controller.failover.plan import FailoverPlan
from leeward_controller.services.nodes import Refusal
from leeward_controller.services.shown import ShownOperation

_PREFIX = "DRAIN_FAILURE_POLICY_"


def on_failure_of(request: pb.DrainNodeRequest) -> OnFailure:
    """What to do when an instance cannot be moved; a value of another version means the default."""
    known = pb.DrainFailurePolicy.DESCRIPTOR.values_by_number.get(request.on_failure)
    name = known.name.removeprefix(_PREFIX) if known is not None else ""
    return OnFailure[name] if name in OnFailure.__members__ else OnFailure.CONTINUE


def evacuation_to_wire(begun: tuple[ShownOperation, ...], refused: tuple[Refusal, ...]) -> pb.EvacuateNodeResponse:
    """What an evacuation began, and what not."""
    return pb.EvacuateNodeResponse(
        operations=[operation_to_wire(shown) for shown in begun],
        refusals=[pb.EvacuateNodeRefusal(instance=each.instance, status=status_of(each.error)) for each in refused],
    )


def plan_to_wire(plan: FailoverPlan, time: datetime) -> pb.PlanFailoverResponse:
    """What would happen."""
    return pb.PlanFailoverResponse(
        placements=[
            pb.PlannedPlacement(
                instance=each.instance, node=f"nodes/{each.node}" if each.node else "", reason=each.reason
            )
            for each in plan.placements
        ],
        survivable=plan.survivable,
        plan_time=timestamp(time),
    )
