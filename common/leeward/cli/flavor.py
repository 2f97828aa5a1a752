"""`leeward flavor`: the sizes that instances can have."""

from typing import Annotated

import typer

from leeward.cli import names
from leeward.cli.arguments import Etag, FlavorName, ValidateOnly, Yes
from leeward.cli.context import Format
from leeward.cli.session import Session, call, confirm, say
from leeward.cli.units import GIB, MIB, parse_size

app = typer.Typer(name="flavor", help="The sizes that instances can have.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="FLAVOR", help="Its name: a-z, 0-9 and '-'.")],
    vcpus: Annotated[int, typer.Option(metavar="N", min=1, help="Virtual processors.")],
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory, as 512M or 4G.")],
    disk: Annotated[str, typer.Option(metavar="SIZE", help="Root disk, as 10G.")],
    validate_only: ValidateOnly = False,
) -> None:
    """Make a flavor."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.flavor_pb2 import Flavor
        from leeward.v1.flavor_service_pb2 import CreateFlavorRequest

        request = CreateFlavorRequest(
            flavor_id=names.short(names.flavor(name)),
            flavor=Flavor(
                vcpus=vcpus,
                memory_mib=parse_size(memory, field="memory", unit=MIB),
                disk_gib=parse_size(disk, field="disk", unit=GIB),
            ),
            validate_only=validate_only,
        )
        flavor = await session.client.flavors.CreateFlavor(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_result(flavor, session.format)

    call(ctx, work)


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List flavors."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_list((await session.client.list_flavors()).items, session.format)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: FlavorName) -> None:
    """Show a flavor."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.flavor_service_pb2 import GetFlavorRequest

        output.show_one(
            await session.client.flavors.GetFlavor(GetFlavorRequest(name=names.flavor(name))), session.format
        )

    call(ctx, work)


@app.command()
def delete(
    ctx: typer.Context, name: FlavorName, yes: Yes = False, validate_only: ValidateOnly = False, etag: Etag = ""
) -> None:
    """Remove a flavor. Instances made with it keep what they have."""
    if not validate_only:
        confirm(f"Delete the flavor {name}?", yes=yes)

    async def work(session: Session) -> None:
        from leeward.v1.flavor_service_pb2 import DeleteFlavorRequest

        full = names.flavor(name)
        request = DeleteFlavorRequest(name=full, etag=etag, validate_only=validate_only)
        await session.client.flavors.DeleteFlavor(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif session.format is Format.TABLE:
            print(f"Deleted {name}.")
        else:
            print(full)

    call(ctx, work)
