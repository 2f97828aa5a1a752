"""How an instance is restarted when its node has died: the options of `create`, and `leeward instance update`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leeward.cli.arguments import Etag, InstanceName, ValidateOnly
from leeward.cli.instance_act import pairs
from leeward.cli.session import Session, call, say
from leeward.cli.units import parse_duration
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from leeward.v1.instance_pb2 import Instance, Readiness

_RUNNING = "running"
_GUEST_AGENT = "guest-agent"
_TCP = "tcp:"


class Priority(StrEnum):
    """Before or after which others an instance is started again when its node has died."""

    HIGHEST = "highest"  # Before all others: what they need to come up.
    HIGH = "high"  # Before most.
    MEDIUM = "medium"  # As most are.
    LOW = "low"  # After most.
    LOWEST = "lowest"  # After all others.


ReadyWhen = Annotated[
    str,
    typer.Option(
        metavar="running|guest-agent|tcp:HOST:PORT",
        help="What those of lower priorities wait for: that it runs, its guest agent answers, or a port is open.",
        show_default=False,
    ),
]
ReadyTimeout = Annotated[
    str, typer.Option(metavar="DURATION", help="For how long they wait, as 30s; 2m unless told.", show_default=False)
]


def readiness(ready_when: str, ready_timeout: str) -> "Readiness | None":
    """What was asked for; None for as soon as it runs. Raises InvalidArgument."""
    from google.protobuf.duration_pb2 import Duration

    from leeward.v1.instance_pb2 import Readiness

    if ready_when in ("", _RUNNING):
        if ready_timeout:
            raise InvalidArgument.field("ready_timeout", "there is nothing to wait for: say --ready-when, too")
        return None
    timeout = None
    if ready_timeout:
        timeout = Duration()
        timeout.FromTimedelta(parse_duration(ready_timeout, field="ready_timeout"))
    if ready_when == _GUEST_AGENT:
        return Readiness(probe=Readiness.PROBE_GUEST_AGENT, timeout=timeout)
    host, separator, port = ready_when.removeprefix(_TCP).rpartition(":")
    if not ready_when.startswith(_TCP) or not separator or not port.isdecimal():
        allowed = f"{_RUNNING}, {_GUEST_AGENT} or tcp:HOST:PORT, as tcp:10.0.0.5:5432"
        raise InvalidArgument.field("ready_when", f"{ready_when!r} is not {allowed}")
    host = host.removeprefix("[").removesuffix("]")
    return Readiness(probe=Readiness.PROBE_TCP_PORT, host=host, port=int(port), timeout=timeout)


def update(
    ctx: typer.Context,
    name: InstanceName,
    restart_on_failure: Annotated[
        bool | None, typer.Option(help="Restart it elsewhere when its node dies.", show_default=False)
    ] = None,
    restart_priority: Annotated[
        Priority | None, typer.Option(help="When: each level waits until those above it have settled.")
    ] = None,
    ready_when: ReadyWhen = "",
    ready_timeout: ReadyTimeout = "",
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label to set. Repeatable.", show_default=False)
    ] = None,
    remove_label: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A label to remove. Repeatable.", show_default=False)
    ] = None,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Change an instance's labels, or how it is restarted when its node has died."""

    async def work(session: Session) -> None:
        from google.protobuf.field_mask_pb2 import FieldMask

        from leeward.cli import output
        from leeward.v1.instance_pb2 import Instance, RestartPriority
        from leeward.v1.instance_service_pb2 import UpdateInstanceRequest

        wanted: dict[str, Any] = {}
        if restart_on_failure is not None:
            wanted["restart_on_failure"] = restart_on_failure
        if restart_priority is not None:
            wanted["restart_priority"] = RestartPriority.Value(f"RESTART_PRIORITY_{restart_priority.name}")
        if ready_when or ready_timeout:
            wanted["readiness"] = readiness(ready_when, ready_timeout)
        version = etag
        if label or remove_label:
            now = await _get(session, name)
            # What is merged here is written over just this version.
            version = etag or now.etag
            wanted["labels"] = _merged(now, label or [], remove_label or [])
        if not wanted:
            raise InvalidArgument("nothing is told to change: see `leeward instance update --help`")
        request = UpdateInstanceRequest(
            instance=Instance(name=session.instance(name), etag=version, **wanted),
            update_mask=FieldMask(paths=list(wanted)),
            validate_only=validate_only,
        )
        changed = await session.client.instances.UpdateInstance(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_result(changed, session.format)

    call(ctx, work)


async def _get(session: Session, name: str) -> "Instance":
    from leeward.v1.instance_service_pb2 import GetInstanceRequest

    return await session.client.instances.GetInstance(GetInstanceRequest(name=session.instance(name)))


def _merged(now: "Instance", label: list[str], remove_label: list[str]) -> dict[str, str]:
    """The labels with those that are given, without those to be removed. Raises InvalidArgument for one not there."""
    labels = dict(now.labels)
    for key in remove_label:
        if key not in labels:
            there = ", ".join(sorted(labels)) or "none"
            raise InvalidArgument.field("remove_label", f"{key!r} is no label of it; there are: {there}")
        del labels[key]
    return labels | pairs(label, option="label")
