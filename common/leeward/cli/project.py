"""`leeward project`: projects and their limits."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from leeward.cli import names
from leeward.cli.arguments import Etag, ProjectName, ValidateOnly, Yes
from leeward.cli.context import Format
from leeward.cli.instance_act import pairs
from leeward.cli.session import Session, call, confirm, say
from leeward.cli.units import GIB, MIB, parse_size
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from leeward.v1.project_pb2 import Project

app = typer.Typer(name="project", help="Projects and their limits.", no_args_is_help=True, rich_markup_mode=None)

NO_LIMIT = "none"

Instances: TypeAlias = Annotated[str, typer.Option(metavar="N|none", help="The most instances.", show_default=False)]
Vcpus: TypeAlias = Annotated[str, typer.Option(metavar="N|none", help="Virtual processors.", show_default=False)]
Memory: TypeAlias = Annotated[str, typer.Option(metavar="SIZE|none", help="Memory, as 64G.", show_default=False)]
Disk: TypeAlias = Annotated[
    str, typer.Option(metavar="SIZE|none", help="All disks of instances, as 2T.", show_default=False)
]
Images: TypeAlias = Annotated[str, typer.Option(metavar="N|none", help="The most images.", show_default=False)]
ImageSize: TypeAlias = Annotated[
    str, typer.Option(metavar="SIZE|none", help="All images together, as 100G.", show_default=False)
]
Labels: TypeAlias = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label. Repeatable.")
]


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="PROJECT", help="Its name: a-z, 0-9 and '-'.")],
    instances: Instances = "",
    vcpus: Vcpus = "",
    memory: Memory = "",
    disk: Disk = "",
    images: Images = "",
    image_size: ImageSize = "",
    label: Labels = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Give a project limits; what is not told has none."""

    async def work(session: Session) -> None:
        from leeward.v1.project_pb2 import Project
        from leeward.v1.project_service_pb2 import CreateProjectRequest

        project = Project(labels=pairs(label or [], option="label"))
        project.quota.SetInParent()
        _set_limits(project.quota, _limits(instances, vcpus, memory, disk, images, image_size))
        request = CreateProjectRequest(
            project_id=names.short(names.project_name(name)), project=project, validate_only=validate_only
        )
        _show(session, await session.client.projects.CreateProject(request), validate_only=validate_only)

    call(ctx, work)


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List the projects that have limits, with what they use of them."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_list((await session.client.list_projects()).items, session.format)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: ProjectName) -> None:
    """Show a project, its limits and what it uses."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.project_service_pb2 import GetProjectRequest

        request = GetProjectRequest(name=names.project_name(name))
        output.show_one(await session.client.projects.GetProject(request), session.format)

    call(ctx, work)


@app.command("set")
def set_(
    ctx: typer.Context,
    name: ProjectName,
    instances: Instances = "",
    vcpus: Vcpus = "",
    memory: Memory = "",
    disk: Disk = "",
    images: Images = "",
    image_size: ImageSize = "",
    label: Labels = None,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Change the limits that are named, 'none' taking one away; with labels, all of them."""

    async def work(session: Session) -> None:
        from google.protobuf.field_mask_pb2 import FieldMask

        from leeward.v1.project_pb2 import Project
        from leeward.v1.project_service_pb2 import GetProjectRequest, UpdateProjectRequest

        full = names.project_name(name)
        limits = _limits(instances, vcpus, memory, disk, images, image_size)
        project = await session.client.projects.GetProject(GetProjectRequest(name=full))
        changed = Project(name=full, quota=project.quota, etag=etag or project.etag)
        _set_limits(changed.quota, limits)
        paths = ["quota"] if limits else []
        if label is not None:
            changed.labels.update(pairs(label, option="label"))
            paths.append("labels")
        if not paths:
            raise InvalidArgument.field("limits", "nothing to change was named")
        request = UpdateProjectRequest(project=changed, update_mask=FieldMask(paths=paths), validate_only=validate_only)
        _show(session, await session.client.projects.UpdateProject(request), validate_only=validate_only)

    call(ctx, work)


@app.command()
def delete(
    ctx: typer.Context, name: ProjectName, yes: Yes = False, validate_only: ValidateOnly = False, etag: Etag = ""
) -> None:
    """Remove a project that has neither instances nor images."""
    if not validate_only:
        confirm(f"Delete the project {name}?", yes=yes)

    async def work(session: Session) -> None:
        from leeward.v1.project_service_pb2 import DeleteProjectRequest

        full = names.project_name(name)
        request = DeleteProjectRequest(name=full, etag=etag, validate_only=validate_only)
        await session.client.projects.DeleteProject(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif session.format is Format.TABLE:
            print(f"Deleted {name}.")
        else:
            print(full)

    call(ctx, work)


def _limits(instances: str, vcpus: str, memory: str, disk: str, images: str, image_size: str) -> dict[str, int | None]:
    """The limits that were told, by the names of the contract; None is no limit. Raises InvalidArgument."""
    told = {
        "instances": (instances, 0),
        "vcpus": (vcpus, 0),
        "memory_mib": (memory, MIB),
        "disk_gib": (disk, GIB),
        "images": (images, 0),
        "image_bytes": (image_size, 1),
    }
    return {field: _limit(text, field=field, unit=unit) for field, (text, unit) in told.items() if text}


def _limit(text: str, *, field: str, unit: int) -> int | None:
    if text == NO_LIMIT:
        return None
    if unit:
        return parse_size(text, field=field, unit=unit)
    if not text.isdecimal():
        raise InvalidArgument.field(field, f"{text!r} is neither a number nor {NO_LIMIT!r}")
    return int(text)


def _set_limits(quota: "Message", limits: dict[str, int | None]) -> None:
    for field, limit in limits.items():
        if limit is None:
            quota.ClearField(field)
        else:
            setattr(quota, field, limit)


def _show(session: Session, project: "Project", *, validate_only: bool) -> None:
    from leeward.cli import output

    if validate_only:
        say("It is valid. Nothing was changed.")
    else:
        output.show_result(project, session.format)
