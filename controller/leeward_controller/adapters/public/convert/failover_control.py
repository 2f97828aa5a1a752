"""How failover stands, and what is left on hosts."""

from leeward.v1 import admin_service_pb2 as pb
from leeward_controller.adapters.public.convert.values import timestamp
from leeward_controller.audit.leftovers import Leftover
from leeward_controller.domain.cluster import Brake, Controller, Disarm
from leeward_controller.records import Stored
from leeward_controller.services.failover_control import FailoverState
from leeward_controller.services.leftovers import LeftoverReport


def state_to_wire(state: FailoverState) -> pb.FailoverState:
    """How failover stands, as clients see it."""
    return pb.FailoverState(
        armed=state.disarm is None,
        disarm=_disarm(state.disarm) if state.disarm is not None else None,
        brake=_brake(state.brake) if state.brake is not None else None,
        leader=_leader(state.leader) if state.leader is not None else None,
    )


def _disarm(disarm: Disarm) -> pb.FailoverDisarm:
    return pb.FailoverDisarm(
        reason=disarm.reason,
        disarmed_by=disarm.disarmed_by,
        disarm_time=timestamp(disarm.time),
        expire_time=timestamp(disarm.expire_time),
    )


def _brake(stored: Stored[Brake]) -> pb.FailoverBrake:
    brake, word = stored.value, stored.value.release
    message = pb.FailoverBrake(
        pulled=brake.holds,
        reason=brake.reason,
        pull_time=timestamp(brake.time),
        nodes=[f"nodes/{node}" for node in brake.nodes],
        controllers_unwell=brake.unwell,
        etag=stored.etag,
    )
    if word is not None:
        message.release.CopyFrom(
            pb.FailoverBrakeRelease(reason=word.reason, released_by=word.released_by, release_time=timestamp(word.time))
        )
    return message


def _leader(leader: Controller) -> pb.FailoverLeader:
    since = timestamp(leader.lead_time) if leader.lead_time is not None else None
    return pb.FailoverLeader(controller=leader.controller, address=leader.address, lead_time=since)


def leftovers_to_wire(report: LeftoverReport) -> pb.ListLeftoversResponse:
    """What a host has of guests that do not belong there."""
    return pb.ListLeftoversResponse(
        leftovers=[_leftover(each) for each in report.leftovers], quarantined=report.quarantined
    )


def _leftover(leftover: Leftover) -> pb.Leftover:
    return pb.Leftover(
        kind=pb.Leftover.Kind.Value(f"KIND_{leftover.kind.name}"),
        instance_uid=leftover.instance_uid,
        instance=leftover.instance,
        instance_exists=leftover.exists,
        current_node=f"nodes/{leftover.current_node}" if leftover.current_node else "",
        explanation=leftover.explanation,
        fate=leftover.fate,
    )
