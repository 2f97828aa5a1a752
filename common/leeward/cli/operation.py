"""`leeward operation`: what is being done, and has been."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Filter, OperationName
from leeward.cli.context import Format
from leeward.cli.session import Session, call, follow, say, show_outcome
from leeward.cli.units import parse_duration
from leeward.errors import DeadlineExceeded

if TYPE_CHECKING:
    from google.longrunning.operations_pb2 import Operation

app = typer.Typer(
    name="operation", help="What is being done, and has been.", no_args_is_help=True, rich_markup_mode=None
)

OperationNames = Annotated[
    list[str],
    typer.Argument(metavar="OPERATION...", help="Operations' names.", autocompletion=complete.operations),
]


@app.command("list")
def list_(ctx: typer.Context, filter: Filter = "") -> None:
    """List operations."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_list(await session.client.list_operations(filter=filter), session.format)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: OperationName) -> None:
    """Show an operation with its steps."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_one(await _get(session, names.operation(name)), session.format)

    call(ctx, work)


@app.command()
def wait(
    ctx: typer.Context,
    operations: OperationNames,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="Give up waiting after this, as 10m.")] = "",
) -> None:
    """Wait until operations are done. Fails as the first of them that failed."""
    timeout_s = parse_duration(timeout, field="timeout").total_seconds() if timeout else None

    async def work(session: Session) -> None:
        import asyncio

        wanted = [names.operation(name) for name in operations]
        try:
            async with asyncio.timeout(timeout_s):
                done = await follow(session, wanted)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"not all of {', '.join(wanted)} are done after {timeout}", metadata={"operation": wanted[0]}
            ) from error
        for operation in done:
            show_outcome(session, operation, "")

    call(ctx, work)


@app.command()
def watch(ctx: typer.Context, name: OperationName) -> None:
    """Follow an operation to its end: a bar at a terminal, with `-o json` each moment as a line."""

    async def work(session: Session) -> None:
        full = names.operation(name)
        if session.format in (Format.TABLE, Format.NAME):
            for operation in await follow(session, [full]):
                show_outcome(session, operation, "")
            return
        from leeward.cli import output
        from leeward.client import error_of

        async for update in session.client.watch_operation(full):
            output.show_event("MODIFIED", update.operation, session.format)
            failure = error_of(update.operation)
            if failure is not None:
                raise failure

    call(ctx, work)


@app.command()
def cancel(ctx: typer.Context, name: OperationName) -> None:
    """Ask an operation to stop and undo what it did. One that is past its commit point goes on."""

    async def work(session: Session) -> None:
        from google.longrunning.operations_pb2 import CancelOperationRequest

        full = names.operation(name)
        await session.client.operations.CancelOperation(CancelOperationRequest(name=full))
        say(f"Asked {full} to stop. `leeward operation watch {names.short(full)}` shows how it ends.")

    call(ctx, work)


async def _get(session: Session, name: str) -> "Operation":
    from google.longrunning.operations_pb2 import GetOperationRequest

    operation: Any = await session.client.operations.GetOperation(GetOperationRequest(name=name))
    return operation
