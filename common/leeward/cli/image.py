"""`leeward image`: disk images to make instances from."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from leeward.cli import names
from leeward.cli.arguments import Etag, Filter, ImageName, ValidateOnly, Yes
from leeward.cli.context import Format
from leeward.cli.session import Session, call, confirm, say
from leeward.errors import AlreadyExists, InvalidArgument, NotFound

app = typer.Typer(name="image", help="Disk images to make instances from.", no_args_is_help=True, rich_markup_mode=None)


class ImageFormat(StrEnum):
    """The disk formats that Leeward accepts."""

    QCOW2 = "qcow2"  # QEMU's own.
    RAW = "raw"  # Bytes as the guest sees them.


# The first bytes of formats. Those that are not accepted are known too, since they would pass as raw otherwise.
_QCOW2_MAGIC = b"QFI\xfb"
_FOREIGN_MAGICS = {
    b"KDMV": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"QED\0": "QED",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"BZh": "bzip2",
}
_LONGEST_MAGIC = 8


@app.command()
def upload(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="IMAGE", help="Its name: a-z, 0-9 and '-'.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The disk image.", dir_okay=False)],
    format: Annotated[ImageFormat | None, typer.Option(help="Its format; read from its header unless told.")] = None,
    pool: Annotated[
        str, typer.Option(metavar="ID", help="The pool to put it in; the server's choice unless told.")
    ] = "",
    property_: Annotated[
        list[str] | None, typer.Option("--property", metavar="KEY=VALUE", help="A property. Repeatable.")
    ] = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Upload a disk image."""
    chosen = format or detect_format(file)

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.cli.progress import bytes_view
        from leeward.v1.image_pb2 import DiskFormat

        full = session.image(name)
        formats = {ImageFormat.QCOW2: DiskFormat.DISK_FORMAT_QCOW2, ImageFormat.RAW: DiskFormat.DISK_FORMAT_RAW}
        with bytes_view(file.name) as progress:
            image = await session.client.upload_image(
                parent=full.partition("/images/")[0],
                image_id=names.short(full),
                path=file,
                format=formats[chosen],
                properties=_properties(property_ or []),
                pool=pool,
                validate_only=validate_only,
                progress=progress,
            )
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_result(image, session.format)

    call(ctx, work)


@app.command("list")
def list_(ctx: typer.Context, filter: Filter = "") -> None:
    """List images; those of all projects with `--project -`."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        images = await session.client.list_images(session.parent, filter=filter)
        output.show_list(images.items, session.format, full_names=session.all_projects)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: ImageName) -> None:
    """Show all that is known of an image."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.image_service_pb2 import GetImageRequest

        image = await session.client.images.GetImage(GetImageRequest(name=session.image(name)))
        output.show_one(image, session.format)

    call(ctx, work)


@app.command()
def download(
    ctx: typer.Context,
    name: ImageName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.", dir_okay=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Download an image's file, whole and checked, or not at all."""
    if file.exists() and not force:
        raise AlreadyExists(f"{file} exists already; --force replaces it", resource=str(file))

    async def work(session: Session) -> None:
        from leeward.cli.progress import bytes_view

        with bytes_view(file.name) as progress:
            await session.client.download_image(session.image(name), file, progress=progress)
        say(f"Wrote {file}.")

    call(ctx, work)


@app.command()
def delete(
    ctx: typer.Context, name: ImageName, yes: Yes = False, validate_only: ValidateOnly = False, etag: Etag = ""
) -> None:
    """Remove an image that no instance uses."""
    if not validate_only:
        confirm(f"Delete the image {name}?", yes=yes)

    async def work(session: Session) -> None:
        from leeward.v1.image_service_pb2 import DeleteImageRequest

        full = session.image(name)
        await session.client.images.DeleteImage(DeleteImageRequest(name=full, etag=etag, validate_only=validate_only))
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif session.format is Format.TABLE:
            print(f"Deleted {name}.")
        else:
            print(full)

    call(ctx, work)


def detect_format(file: Path) -> ImageFormat:
    """What the header says. Raises InvalidArgument for a format that is known and not accepted, NotFound."""
    try:
        with file.open("rb") as opened:
            header = opened.read(_LONGEST_MAGIC)
    except FileNotFoundError as error:
        raise NotFound.named(str(file)) from error
    except OSError as error:
        raise InvalidArgument.field("file", f"cannot read {file}: {error.strerror}") from error
    if header.startswith(_QCOW2_MAGIC):
        return ImageFormat.QCOW2
    for magic, foreign in _FOREIGN_MAGICS.items():
        if header.startswith(magic):
            raise InvalidArgument.field(
                "file", f"{file} looks like {foreign}: convert or unpack it first, or say that it is --format raw"
            )
    return ImageFormat.RAW


def _properties(texts: list[str]) -> dict[str, str]:
    properties: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InvalidArgument.field("property", f"{text!r} is not KEY=VALUE")
        properties[key] = value
    return properties
