"""What operators may decide of failover, and what everybody may see of it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from tests.contract.public_api.calls import launched, refused
from tests.support.public import ADMIN, WAIT_S, Face, PublicLab

from leeward.errors import AgentUnavailable, Conflict, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from leeward.identity import Principal, Role
from leeward.v1 import admin_service_pb2 as pb
from leeward.v1 import admin_service_pb2_grpc, node_pb2
from leeward.v1 import node_service_pb2 as node_pb


def admin(face: Face) -> Any:
    return admin_service_pb2_grpc.AdminServiceStub(face.channel)


def for_so_long(**span: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(**span))
    return duration


async def state_of(face: Face) -> pb.FailoverState:
    state: pb.FailoverState = await admin(face).GetFailoverState(pb.GetFailoverStateRequest())
    return state


async def answered(ask: Callable[[], Awaitable[Any]], good: Callable[[Any], bool]) -> Any:
    """The first answer that is good."""
    async with asyncio.timeout(2 * WAIT_S):
        while not good(answer := await ask()):  # noqa: ASYNC110 - what is waited for is behind the API.
            await asyncio.sleep(0.05)
    return answer


async def until_condition(face: Face, name: str, condition: "node_pb2.Node.Condition.ValueType") -> None:
    request = node_pb.GetNodeRequest(name=name)
    await answered(lambda: face.nodes.GetNode(request), lambda node: node.condition == condition)


async def test_failover_is_disarmed_for_a_while_and_armed_again(lab: PublicLab, face: Face) -> None:
    state = await state_of(face)
    assert state.armed
    assert not state.HasField("brake")
    assert not state.HasField("disarm")
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    assert (state.leader.controller, state.leader.address) == (core.controller_id, face.address)
    assert state.leader.lead_time.ToDatetime() <= lab.clock.now().replace(tzinfo=None)

    disarm = pb.DisarmFailoverRequest(reason="switches", duration=for_so_long(hours=2), validate_only=True)
    assert not (await admin(face).DisarmFailover(disarm)).armed
    assert (await state_of(face)).armed
    disarm.validate_only = False
    disarmed = await admin(face).DisarmFailover(disarm)
    assert (disarmed.disarm.reason, disarmed.disarm.disarmed_by) == ("switches", str(ADMIN))
    lasts = disarmed.disarm.expire_time.ToDatetime() - disarmed.disarm.disarm_time.ToDatetime()
    assert lasts == timedelta(hours=2)
    again = await admin(face).DisarmFailover(
        pb.DisarmFailoverRequest(reason="more switches", duration=for_so_long(minutes=1))
    )
    assert again == await state_of(face)
    assert again.disarm.reason == "more switches"
    other = await lab.add_controller()
    assert (await state_of(other)).disarm == again.disarm
    assert (await admin(other).ArmFailover(pb.ArmFailoverRequest())).armed
    assert (await admin(other).ArmFailover(pb.ArmFailoverRequest())).armed
    assert (await state_of(face)).armed


async def test_a_disarm_needs_a_reason_and_ends_within_a_day(face: Face) -> None:
    error = await refused(InvalidArgument, admin(face).DisarmFailover(pb.DisarmFailoverRequest()))
    assert {each.field for each in error.fields} == {"reason", "duration"}
    for span in (timedelta(seconds=59), timedelta(hours=24, seconds=1)):
        request = pb.DisarmFailoverRequest(reason="x", duration=for_so_long(seconds=span.total_seconds()))
        error = await refused(InvalidArgument, admin(face).DisarmFailover(request))
        assert [each.field for each in error.fields] == ["duration"]
    assert (await state_of(face)).armed


async def test_only_admins_decide_and_everybody_sees(lab: PublicLab, face: Face) -> None:
    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    user = lab.serve(core, address="127.0.0.1:0", principal=Principal(Role.CLIENT, "someone"))
    await user.server.start()
    assert (await state_of(user)).armed
    disarm = pb.DisarmFailoverRequest(reason="x", duration=for_so_long(hours=1))
    await refused(PermissionDenied, admin(user).DisarmFailover(disarm))
    await refused(PermissionDenied, admin(user).ArmFailover(pb.ArmFailoverRequest()))
    await refused(PermissionDenied, admin(user).ReleaseBrake(pb.ReleaseBrakeRequest(reason="x")))
    await refused(PermissionDenied, admin(user).ListLeftovers(pb.ListLeftoversRequest(name="nodes/host-a")))


async def test_the_brake_is_released_for_a_reason_and_only_when_it_is_pulled(lab: PublicLab, stocked: Face) -> None:
    release = pb.ReleaseBrakeRequest(reason="the rack lost its power")
    error = await refused(FailedPrecondition, admin(stocked).ReleaseBrake(release))
    assert error.specific_reason == "BRAKE_NOT_PULLED"
    await refused(InvalidArgument, admin(stocked).ReleaseBrake(pb.ReleaseBrakeRequest()))
    made = await launched(stocked)
    for host in lab.cluster.nodes.values():
        await host.power_off()
    state = await answered(lambda: state_of(stocked), lambda state: state.brake.pulled)
    assert list(state.brake.nodes) == ["nodes/host-a", "nodes/host-b"]
    stale = pb.ReleaseBrakeRequest(reason="the rack lost its power", etag="1")
    error = await refused(Conflict, admin(stocked).ReleaseBrake(stale))
    assert error.specific_reason == "ETAG_MISMATCH"
    release.etag = state.brake.etag
    state = await admin(stocked).ReleaseBrake(release)
    assert not state.brake.pulled
    assert (state.brake.release.reason, state.brake.release.released_by) == ("the rack lost its power", str(ADMIN))
    assert list(state.brake.nodes) == ["nodes/host-a", "nodes/host-b"]
    assert (await admin(stocked).ReleaseBrake(release)).brake == state.brake
    assert made.node in state.brake.nodes


async def test_leftovers_of_a_host(lab: PublicLab, stocked: Face) -> None:
    made = await launched(stocked)
    node, host = made.node, made.node.removeprefix("nodes/")
    list_ = pb.ListLeftoversRequest(name=node)
    nothing = await admin(stocked).ListLeftovers(list_)
    assert (list(nothing.leftovers), nothing.quarantined) == ([], False)
    await refused(NotFound, admin(stocked).ListLeftovers(pb.ListLeftoversRequest(name="nodes/nowhere")))
    await refused(InvalidArgument, admin(stocked).ListLeftovers(pb.ListLeftoversRequest(name="here")))

    core = lab.cluster.controllers["controller-0"].core
    assert core is not None
    await lab.cluster.nodes[host].power_off()
    assert await core.view.wait_for(lambda: host not in core.view.leases, timeout_s=WAIT_S)
    await refused(AgentUnavailable, admin(stocked).ListLeftovers(list_))
    await until_condition(stocked, node, node_pb2.Node.CONDITION_EVACUATED)
    await lab.cluster.nodes[host].power_on()
    await until_condition(stocked, node, node_pb2.Node.CONDITION_QUARANTINED)
    found = await answered(lambda: admin(stocked).ListLeftovers(list_), lambda found: bool(found.leftovers))
    (left,) = found.leftovers
    assert found.quarantined
    assert (left.instance, left.instance_uid, left.instance_exists) == (made.name, made.uid, True)
    assert left.current_node not in ("", node)
    assert left.explanation
    assert left.fate
    released = await stocked.nodes.UncordonNode(node_pb.UncordonNodeRequest(name=node))
    assert released.condition == node_pb2.Node.CONDITION_READY
    assert not (await admin(stocked).ListLeftovers(list_)).quarantined
