"""`leeward instance`: what makes images of one, and what gives it other disks."""

from typing import Annotated, Any

import typer

from leeward.cli import complete
from leeward.cli.arguments import Etag, InstanceName, NoWait, ValidateOnly, Yes
from leeward.cli.instance_act import ToNode, act, duration_fields, node_field, pairs
from leeward.cli.session import Session, confirm

OtherImage = Annotated[
    str,
    typer.Option("--image", metavar="IMAGE", help="Another image than its own.", autocompletion=complete.images),
]


def snapshot(
    ctx: typer.Context,
    name: InstanceName,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The name of the image to make, in the same project.")],
    property_: Annotated[
        list[str] | None, typer.Option("--property", metavar="KEY=VALUE", help="A property of the image. Repeatable.")
    ] = None,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Make an image of an instance without stopping it."""
    fields: dict[str, Any] = {"image_id": image, "properties": pairs(property_ or [], option="property")}
    act(ctx, "SnapshotInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


def shelve(
    ctx: typer.Context,
    name: InstanceName,
    offload_after: Annotated[
        str, typer.Option("--offload-after", metavar="DURATION", help="Keep its node for so long, as 1h.")
    ] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Keep an instance as an image and free its node."""
    fields = duration_fields(offload_delay=offload_after)
    act(ctx, "ShelveInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


def unshelve(
    ctx: typer.Context,
    name: InstanceName,
    to: ToNode = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Bring a shelved instance back."""
    act(ctx, "UnshelveInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, node=node_field(to))


def rescue(
    ctx: typer.Context,
    name: InstanceName,
    image: OtherImage = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Boot a rescue image, or the instance's own anew, with its disk attached as second one."""
    act(ctx, "RescueInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, image=_image(image))


def unrescue(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """End a rescue and go back to the state before."""
    act(ctx, "UnrescueInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def rebuild(
    ctx: typer.Context,
    name: InstanceName,
    image: OtherImage = "",
    yes: Yes = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Give an instance a new root disk from an image. Its name, addresses, place and data disks are kept."""
    if not validate_only:
        confirm(f"Replace the root disk of {name}?", yes=yes)
    act(ctx, "RebuildInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, image=_image(image))


def _image(name: str) -> Any:
    """The field for an image, which may be named within the chosen project; empty for the instance's own."""

    def field(session: Session) -> str:
        return session.image(name)

    return field if name else ""


COMMANDS = (
    ("snapshot", snapshot),
    ("shelve", shelve),
    ("unshelve", unshelve),
    ("rescue", rescue),
    ("unrescue", unrescue),
    ("rebuild", rebuild),
)
