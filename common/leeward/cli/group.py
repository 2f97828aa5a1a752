"""`leeward group`: instances that are kept together or apart."""

from enum import StrEnum
from typing import Annotated

import typer

from leeward.cli import names
from leeward.cli.arguments import Etag, GroupName, ValidateOnly, Yes
from leeward.cli.context import Format
from leeward.cli.instance_act import pairs
from leeward.cli.session import Session, call, confirm, say

app = typer.Typer(
    name="group", help="Instances that are kept together or apart.", no_args_is_help=True, rich_markup_mode=None
)


class Policy(StrEnum):
    """How the members of a group are placed."""

    AFFINITY = "affinity"  # All on one node, or not at all.
    ANTI_AFFINITY = "anti-affinity"  # Each on a node of its own, or not at all.
    SOFT_AFFINITY = "soft-affinity"  # On one node where possible.
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"  # On different nodes where possible.


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="GROUP", help="Its name: a-z, 0-9 and '-'.")],
    policy: Annotated[Policy, typer.Option(help="How its members are placed; 'soft' is where possible.")],
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label. Repeatable.")] = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Make a group; instances join it with `leeward instance create --group`."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.group_pb2 import Group
        from leeward.v1.group_service_pb2 import CreateGroupRequest

        full = session.group(name)
        request = CreateGroupRequest(
            parent=full.partition("/groups/")[0],
            group_id=names.short(full),
            group=Group(policy=Group.Policy.Value(f"POLICY_{policy.name}"), labels=pairs(label or [], option="label")),
            validate_only=validate_only,
        )
        group = await session.client.groups.CreateGroup(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_result(group, session.format)

    call(ctx, work)


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List groups."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        listing = await session.client.list_groups(session.parent)
        output.show_list(listing.items, session.format, full_names=session.all_projects)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: GroupName) -> None:
    """Show a group with its members."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.group_service_pb2 import GetGroupRequest

        output.show_one(await session.client.groups.GetGroup(GetGroupRequest(name=session.group(name))), session.format)

    call(ctx, work)


@app.command()
def label(
    ctx: typer.Context,
    name: GroupName,
    labels: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="All its labels.")] = None,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Set the labels of a group; those not named go."""

    async def work(session: Session) -> None:
        from google.protobuf.field_mask_pb2 import FieldMask

        from leeward.cli import output
        from leeward.v1.group_pb2 import Group
        from leeward.v1.group_service_pb2 import UpdateGroupRequest

        request = UpdateGroupRequest(
            group=Group(name=session.group(name), labels=pairs(labels or [], option="label"), etag=etag),
            update_mask=FieldMask(paths=["labels"]),
            validate_only=validate_only,
        )
        group = await session.client.groups.UpdateGroup(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_result(group, session.format)

    call(ctx, work)


@app.command()
def delete(
    ctx: typer.Context, name: GroupName, yes: Yes = False, validate_only: ValidateOnly = False, etag: Etag = ""
) -> None:
    """Remove a group that has no members."""
    if not validate_only:
        confirm(f"Delete the group {name}?", yes=yes)

    async def work(session: Session) -> None:
        from leeward.v1.group_service_pb2 import DeleteGroupRequest

        full = session.group(name)
        request = DeleteGroupRequest(name=full, etag=etag, validate_only=validate_only)
        await session.client.groups.DeleteGroup(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif session.format is Format.TABLE:
            print(f"Deleted {name}.")
        else:
            print(full)

    call(ctx, work)
