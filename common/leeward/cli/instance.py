"""`leeward instance`: virtual machines."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leeward.cli import instance_images, instance_moves, instance_power
from leeward.cli.arguments import Etag, Filter, InstanceName, ValidateOnly, Watch
from leeward.cli.attach import console
from leeward.cli.console import console_log
from leeward.cli.context import Format
from leeward.cli.instance_act import request_of
from leeward.cli.instance_create import create
from leeward.cli.instance_restart import update
from leeward.cli.session import Session, call, say

if TYPE_CHECKING:
    from leeward.v1.instance_pb2 import Instance

app = typer.Typer(name="instance", help="Virtual machines.", no_args_is_help=True, rich_markup_mode=None)

app.command()(create)


@app.command("list")
def list_(ctx: typer.Context, filter: Filter = "", watch: Watch = False) -> None:
    """List instances; those of all projects with `--project -`."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        async def fetch() -> "tuple[Instance, ...]":
            return (await session.client.list_instances(session.parent, filter=filter)).items

        if watch:
            from leeward.cli.live import watch_list

            await watch_list(session, fetch, session.client.watch_instances(session.parent))
        else:
            output.show_list(await fetch(), session.format, full_names=session.all_projects)

    call(ctx, work)


@app.command("watch")
def watch_(
    ctx: typer.Context,
    revision: Annotated[int, typer.Option(min=0, help="Go on behind this revision; 0: with all there are.")] = 0,
) -> None:
    """Write every change of instances, none missed and none twice, until Ctrl-C."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        async for change in session.client.watch_instances(session.parent, revision=revision):
            if change.resource is not None:
                output.show_event(change.kind, change.resource, session.format, full_names=session.all_projects)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: InstanceName) -> None:
    """Show all that is known of an instance."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.instance_service_pb2 import GetInstanceRequest

        request = GetInstanceRequest(name=session.instance(name))
        output.show_one(await session.client.instances.GetInstance(request), session.format)

    call(ctx, work)


for _name, _command in (*instance_power.COMMANDS, *instance_moves.COMMANDS, *instance_images.COMMANDS):
    app.command(_name)(_command)


@app.command()
def lock(
    ctx: typer.Context,
    name: InstanceName,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; told to whoever is refused.")] = "",
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Refuse every change to an instance by others than admins."""
    _change(ctx, "LockInstance", name, validate_only=validate_only, etag=etag, reason=reason)


@app.command()
def unlock(ctx: typer.Context, name: InstanceName, validate_only: ValidateOnly = False, etag: Etag = "") -> None:
    """Allow changes to an instance again."""
    _change(ctx, "UnlockInstance", name, validate_only=validate_only, etag=etag)


@app.command()
def events(
    ctx: typer.Context,
    name: InstanceName,
    steps: Annotated[bool, typer.Option("--steps", help="With the steps that each took.")] = False,
) -> None:
    """List what was done to an instance, oldest first."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        found = await session.client.list_instance_events(session.instance(name))
        if not steps or session.format is not Format.TABLE:
            output.show_list(found, session.format)
            return
        for event in found:
            output.show_one(event, session.format)
            print()

    call(ctx, work)


app.command()(update)
app.command("console-log")(console_log)
app.command("console")(console)


def _change(ctx: typer.Context, method: str, name: str, *, validate_only: bool, **fields: Any) -> None:
    """Call `method`, which answers the instance at once."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        request = request_of(session, method, name, validate_only=validate_only, **fields)
        instance = await getattr(session.client.instances, method)(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_result(instance, session.format)

    call(ctx, work)
