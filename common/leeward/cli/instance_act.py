"""What the commands share that begin an operation on one instance."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leeward.cli import complete, names
from leeward.cli.session import Session, operate
from leeward.cli.units import parse_duration
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from google.longrunning.operations_pb2 import Operation

ToNode = Annotated[
    str,
    typer.Option(
        "--to",
        "--node",
        metavar="NODE",
        help="The node to go to, and no other; without it the scheduler chooses.",
        autocompletion=complete.nodes,
        show_default=False,
    ),
]
GracePeriod = Annotated[
    str, typer.Option(metavar="DURATION", help="How long the guest may take, as 30s; 60s unless told.")
]
Force = Annotated[bool, typer.Option("--force", help="Do not ask the guest, end it at once.")]


def act(
    ctx: typer.Context, method: str, name: str, *, no_wait: bool, validate_only: bool, after: str = "", **fields: Any
) -> None:
    """Begin `method` of the instance service on one instance. `fields` are those of its request."""

    async def begin(session: Session) -> "Operation":
        request = request_of(session, method, name, validate_only=validate_only, **fields)
        call_method: Callable[[Any], Awaitable[Operation]] = getattr(session.client.instances, method)
        return await call_method(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only, after=after)


def request_of(session: Session, method: str, name: str, **fields: Any) -> Any:
    """The request of `method` about one instance; a field that is callable is asked with the session."""
    from leeward.v1 import instance_service_pb2

    kind = getattr(instance_service_pb2, f"{method}Request")
    made = {key: value(session) if callable(value) else value for key, value in fields.items()}
    return kind(name=session.instance(name), **made)


def node_field(to: str) -> str:
    """The resource name of a node, or empty for none."""
    return names.node(to) if to else ""


def duration_fields(**texts: str) -> dict[str, Any]:
    """The fields of those durations that were given. Raises InvalidArgument."""
    return {field: parse_duration(text, field=field) for field, text in texts.items() if text}


def grace_fields(grace_period: str, *, force: bool) -> dict[str, Any]:
    """The grace period as it was given, none with `force`. Raises InvalidArgument for both."""
    if force and grace_period:
        raise InvalidArgument.field("force", "the guest gets no grace period then; give one or the other")
    return duration_fields(grace_period="0s" if force else grace_period)


def pairs(texts: list[str], *, option: str) -> dict[str, str]:
    """Labels or properties, each KEY=VALUE. Raises InvalidArgument."""
    found: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InvalidArgument.field(option, f"{text!r} is not KEY=VALUE")
        found[key] = value
    return found
