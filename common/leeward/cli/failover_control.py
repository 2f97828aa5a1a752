"""`leeward failover status`, `disarm`, `arm` and `release-brake`: the operators' hold on failover."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from leeward.cli import names
from leeward.cli.arguments import ValidateOnly, Yes
from leeward.cli.context import Format
from leeward.cli.session import Session, call, confirm, say
from leeward.cli.units import duration_text, parse_duration

if TYPE_CHECKING:
    from leeward.v1.admin_service_pb2 import FailoverBrake, FailoverDisarm, FailoverState

Reason: TypeAlias = Annotated[str, typer.Option(metavar="TEXT", help="Why; told to whoever asks.")]


def status(ctx: typer.Context) -> None:
    """Show whether failover is armed, whether its brake holds evacuation, and who leads.

    Exits with 1 while nodes are not fenced or not evacuated by themselves.
    """

    async def work(session: Session) -> bool:
        from leeward.v1.admin_service_pb2 import GetFailoverStateRequest

        state = await session.client.admin.GetFailoverState(GetFailoverStateRequest())
        _show(session, state)
        return state.armed and not state.brake.pulled and state.HasField("leader")

    if not call(ctx, work):
        raise typer.Exit(1)


def disarm(
    ctx: typer.Context,
    reason: Reason,
    duration: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="For how long at most: 1m to 24h.", show_default=False)
    ],
    validate_only: ValidateOnly = False,
) -> None:
    """Stop automatic fencing and evacuation for a while, as for work on the network or on fence devices.

    Nothing is powered off, and nothing is restarted elsewhere unasked. `leeward node fence` and `evacuate` work as
    ever. The guard on a host that is cut off from etcd and storage still ends its guests.
    """

    async def work(session: Session) -> None:
        from google.protobuf.duration_pb2 import Duration

        from leeward.v1.admin_service_pb2 import DisarmFailoverRequest

        asked = Duration()
        asked.FromTimedelta(parse_duration(duration, field="for"))
        request = DisarmFailoverRequest(reason=reason, duration=asked, validate_only=validate_only)
        _show_changed(session, await session.client.admin.DisarmFailover(request), validate_only=validate_only)

    call(ctx, work)


def arm(ctx: typer.Context, validate_only: ValidateOnly = False) -> None:
    """End a disarm before its time: nodes are fenced and evacuated by themselves again."""

    async def work(session: Session) -> None:
        from leeward.v1.admin_service_pb2 import ArmFailoverRequest

        request = ArmFailoverRequest(validate_only=validate_only)
        _show_changed(session, await session.client.admin.ArmFailover(request), validate_only=validate_only)

    call(ctx, work)


def release_brake(ctx: typer.Context, reason: Reason, yes: Yes = False, validate_only: ValidateOnly = False) -> None:
    """Let evacuation go on although so many nodes look dead; for these nodes, and until they are back or emptied."""

    async def work(session: Session) -> None:
        from leeward.v1.admin_service_pb2 import GetFailoverStateRequest, ReleaseBrakeRequest

        etag = ""
        if not validate_only:
            brake = (await session.client.admin.GetFailoverState(GetFailoverStateRequest())).brake
            # Where it cannot be released the API says why; there is nothing to ask about.
            if brake.pulled and not brake.controllers_unwell:
                say(f"{brake.reason}.")
                confirm("Restart the instances of these nodes elsewhere, each once it is proved dead?", yes=yes)
                etag = brake.etag
        request = ReleaseBrakeRequest(reason=reason, etag=etag, validate_only=validate_only)
        _show_changed(session, await session.client.admin.ReleaseBrake(request), validate_only=validate_only)

    call(ctx, work)


async def tell_hold(session: Session) -> None:
    """Beside a list of nodes, tell on standard error when they are not fenced or evacuated by themselves."""
    from leeward.clock import SystemClock
    from leeward.v1.admin_service_pb2 import GetFailoverStateRequest

    state = await session.client.admin.GetFailoverState(GetFailoverStateRequest())
    if not state.armed:
        say(f"Failover is {_disarm_text(state.disarm, SystemClock().now().timestamp())}")
    if state.brake.pulled:
        say(f"The brake is {_brake_text(state.brake)}")


def _show_changed(session: Session, state: "FailoverState", *, validate_only: bool) -> None:
    if validate_only:
        say("It is valid. Nothing was changed.")
    else:
        _show(session, state)


def _show(session: Session, state: "FailoverState") -> None:
    from leeward.cli import output
    from leeward.clock import SystemClock

    match session.format:
        case Format.TABLE:
            print("\n".join(state_lines(state, now_s=SystemClock().now().timestamp())))
        case Format.NAME:
            print("armed" if state.armed else "disarmed")
        case _:
            output.show_one(state, session.format)


def state_lines(state: "FailoverState", *, now_s: float) -> Iterator[str]:
    """How failover stands, for people."""
    yield f"failover: {_disarm_text(state.disarm, now_s) if not state.armed else 'armed'}"
    yield f"brake:    {_brake_text(state.brake) if state.HasField('brake') else 'not pulled'}"
    if not state.HasField("leader"):
        yield "leader:   none, so nothing is watched at this moment"
        return
    yield f"leader:   {state.leader.address} for {duration_text(max(0.0, now_s - state.leader.lead_time.seconds))}"


def _disarm_text(disarm: "FailoverDisarm", now_s: float) -> str:
    from leeward.cli.describe import time_text

    left_s = disarm.expire_time.seconds - now_s
    left = f"for {duration_text(left_s)} yet" if left_s > 0 else "about to be armed"
    return f"disarmed until {time_text(disarm.expire_time)} ({left}) by {disarm.disarmed_by}: {disarm.reason}"


def _brake_text(brake: "FailoverBrake") -> str:
    from leeward.cli.describe import time_text

    since = f"since {time_text(brake.pull_time)}"
    nodes = f" [{', '.join(names.short(node) for node in brake.nodes)}]" if brake.nodes else ""
    if brake.controllers_unwell:
        return f"pulled {since}: {brake.reason}; it is released by itself"
    if brake.pulled:
        return f"pulled {since}: {brake.reason}{nodes}"
    word = brake.release
    released = f"released {time_text(word.release_time)} by {word.released_by}: {word.reason}"
    return f"{released}; its cause: {brake.reason}{nodes}"
