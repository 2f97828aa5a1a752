"""`leeward failover list`, `show` and `drill`: what became of nodes that were lost, and rehearsing it."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Etag, NodeName, NoWait, ValidateOnly
from leeward.cli.context import Format
from leeward.cli.session import Session, call, follow, say, show_begun
from leeward.errors import LeewardError

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from leeward.v1.failover_pb2 import Failover, FailoverGuest

_LOOK_S = 0.25
_LOOKS = 20
_OVER = {
    "RECOVERED": "over: nothing is left on it that was to be restarted elsewhere",
    "RETURNED": "over: it came back before there was a proof; its guests ran on",
    "REBOOTED": "over: it came back in a new boot; what was still on it is started there again",
    "INCOMPLETE": "over: it came back, or was removed, before all had left it",
}

_DRILLED = {
    "RECOVERED": "over: all could be moved there, and are back",
    "INCOMPLETE": "over: not all could be moved there and back",
}


def list_(
    ctx: typer.Context,
    node: Annotated[str, typer.Option(metavar="NODE", help="Of this node alone.", autocompletion=complete.nodes)] = "",
) -> None:
    """List the last failovers, oldest first: how they were proved, what was restarted, and in how many seconds."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        terms = f"node = {names.short(names.node(node))}" if node else ""
        output.show_list((await session.client.list_failovers(filter=terms)).items, session.format)

    call(ctx, work)


def show(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="FAILOVER", help="Its name, as `leeward failover list` tells it.", autocompletion=complete.failovers
        ),
    ],
) -> None:
    """Show what happened in a failover, in order: the lease lost, the proof, each instance and where it went."""

    async def work(session: Session) -> None:
        await _show(session, names.failover(name))

    call(ctx, work)


def drill(
    ctx: typer.Context,
    node: NodeName,
    at_a_time: Annotated[
        int, typer.Option("--at-a-time", metavar="N", min=1, max=64, help="How many instances to move at once.")
    ] = 2,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Rehearse a node's failover: move what runs on it live to where it would be restarted, and back.

    Nothing is stopped. It exits with an error when an instance would find no place or could not be moved there.
    """

    async def work(session: Session) -> None:
        from leeward.v1.failover_service_pb2 import DrillFailoverRequest

        request = DrillFailoverRequest(
            node=names.node(node), etag=etag, validate_only=validate_only, parallelism=at_a_time
        )
        operation = await session.client.failovers.DrillFailover(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif no_wait:
            show_begun(session, [operation])
        else:
            try:
                await follow(session, [operation.name])
            except LeewardError:
                await _show_drill(session, operation.name)
                raise
            await _show_drill(session, operation.name)

    call(ctx, work)


async def _show_drill(session: Session, operation: str) -> None:
    """Show the record of a drill, which the leader makes when it has ended."""
    for _ in range(_LOOKS):
        found = (await session.client.list_failovers(filter=f"operation = {operation}")).items
        if found:
            await _show(session, found[0].name)
            return
        await asyncio.sleep(_LOOK_S)
    say("Its record is not there yet; see `leeward failover list`.")


async def _show(session: Session, name: str) -> None:
    from leeward.cli import output
    from leeward.v1.failover_service_pb2 import GetFailoverRequest

    failover = await session.client.failovers.GetFailover(GetFailoverRequest(name=name))
    if session.format is Format.TABLE:
        print("\n".join(timeline(failover)))
    else:
        output.show_one(failover, session.format)


def timeline(failover: "Failover") -> list[str]:
    """The lines: what it was, then each moment with the time since the lease was lost, then who still waits."""
    from leeward.cli.columns import failover_state

    moments = sorted(_moments(failover), key=lambda moment: moment[0])
    since = [f"+{seconds:.1f} s" for seconds, _, _ in moments]
    width = max(map(len, since))
    what = f"drill, {failover_state(failover)}" if _is_drill(failover) else failover_state(failover)
    lines = [f"{names.short(failover.name)}: {names.short(failover.node)}, {what}"]
    lines += [f"  {text.rjust(width)}  {time}  {what}" for text, (_, time, what) in zip(since, moments, strict=True)]
    lines += [f"  {' ' * width}  {line}" for line in _unsettled(failover)]
    if not failover.measured:
        lines.append("The controller that led changed meanwhile, so times are as good as the controllers' clocks.")
    return lines


def _moments(failover: "Failover") -> Iterator[tuple[float, str, str]]:
    """Seconds since the lease was lost, the time of day, and what happened."""
    from leeward.cli.columns import failover_proof, failover_state
    from leeward.cli.describe import seconds_of

    if _is_drill(failover):
        begun = f"a drill began: {failover.to_restart_count} to move, {failover.left_alone_count} take no part"
        yield 0.0, _clock(failover.begin_time), begun
    else:
        yield 0.0, _clock(failover.begin_time), "its etcd lease was lost"
    if failover.HasField("detect_duration"):
        detect_s = seconds_of(failover.detect_duration)
        if not failover.HasField("proof_duration") or detect_s < seconds_of(failover.proof_duration):
            yield detect_s, _after(failover, failover.detect_duration), "both its heartbeats were found to be lost"
    if failover.HasField("proof_time"):
        counted = f"{failover.to_restart_count} to restart"
        if failover.left_alone_count:
            counted += f", {failover.left_alone_count} not to be restarted elsewhere"
        proof = f"proved by {failover_proof(failover)}: {failover.proof_evidence}"
        proof_s = seconds_of(failover.proof_duration)
        yield proof_s, _clock(failover.proof_time), proof
        yield proof_s, _clock(failover.proof_time), counted
    for guest in failover.guests:
        if guest.HasField("end_duration"):
            yield seconds_of(guest.end_duration), _clock(guest.end_time), _ended(guest)
    if failover.HasField("end_time"):
        over = (_DRILLED if _is_drill(failover) else _OVER).get(failover_state(failover), "over")
        yield seconds_of(failover.total_duration), _clock(failover.end_time), over


def _ended(guest: "FailoverGuest") -> str:
    from leeward.cli.describe import enum_text, seconds_of

    outcome = enum_text(guest.DESCRIPTOR.enum_types_by_name["Outcome"], guest.outcome)
    instance, tries = names.short(guest.instance), f", try {guest.try_count}" if guest.try_count > 1 else ""
    match outcome:
        case "RESTARTED":
            took = f"started in {seconds_of(guest.restart_duration):.1f} s"
            if guest.HasField("ready_duration"):
                took += f", ready {seconds_of(guest.ready_duration):.1f} s later"
            late = f"; {guest.error}" if guest.error else ""
            return f"{instance} restarted on {names.short(guest.target_node)} ({took}{tries}{late})"
        case "BROUGHT_BACK":
            took = f"{seconds_of(guest.restart_duration):.1f} s"
            return f"{instance} moved live to {names.short(guest.target_node)} in {took}"
        case "ELSEWHERE":
            return f"{instance} had left it already"
        case "NO_PLACE":
            return f"{instance} found no place: {guest.error}"
    return f"{instance} {outcome.lower()}: {guest.error}"


def _unsettled(failover: "Failover") -> Iterator[str]:
    """What has not come to an end, and what is left out."""
    from leeward.cli.describe import enum_text

    for guest in failover.guests:
        outcome = enum_text(guest.DESCRIPTOR.enum_types_by_name["Outcome"], guest.outcome)
        if outcome == "WAITING":
            yield f"{names.short(guest.instance)} waits for its turn"
        elif outcome == "RESTARTING":
            yield f"{names.short(guest.instance)} is being restarted"
        elif outcome == "NO_PLACE" and not guest.HasField("end_duration"):
            yield f"{names.short(guest.instance)} would find no place: {guest.error}"
        elif outcome == "STAYED":
            yield f"{names.short(guest.instance)} stayed on {names.short(failover.node)}"
    if failover.guests_left_out_count:
        yield f"and {failover.guests_left_out_count} more instances"


def _is_drill(failover: "Failover") -> bool:
    from leeward.v1.failover_pb2 import Failover

    return failover.kind == Failover.KIND_DRILL


def _clock(time: "Timestamp") -> str:
    """The time of day in UTC, to the second."""
    from leeward.cli.describe import time_text

    return time_text(time)


def _after(failover: "Failover", duration: "Duration") -> str:
    """The time of day so long after the lease was lost."""
    from google.protobuf.timestamp_pb2 import Timestamp

    time = Timestamp()
    time.FromDatetime(failover.begin_time.ToDatetime() + duration.ToTimedelta())
    return _clock(time)
