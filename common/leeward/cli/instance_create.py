"""`leeward instance create`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import NoWait, ValidateOnly
from leeward.cli.instance_act import node_field, pairs
from leeward.cli.instance_restart import Priority, ReadyTimeout, ReadyWhen, readiness
from leeward.cli.session import Session, operate
from leeward.cli.units import GIB, parse_size
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from google.longrunning.operations_pb2 import Operation

    from leeward.v1.instance_pb2 import CloudInit

_MAX_FILE_BYTES = 64 * 1024


class StorageKind(StrEnum):
    """Which kind of pool an instance's disks are to be in."""

    ANY = "any"  # A shared one where there is one.
    SHARED = "shared"  # One that several nodes have.
    LOCAL = "local"  # One of its node alone.


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="INSTANCE", help="Its name: a-z, 0-9 and '-'.")],
    image: Annotated[str, typer.Option(help="What it boots.", autocompletion=complete.images)],
    flavor: Annotated[str, typer.Option(help="Its size.", autocompletion=complete.flavors)],
    node: Annotated[
        str,
        typer.Option(metavar="NODE", help="The node to launch it on, and no other.", autocompletion=complete.nodes),
    ] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label. Repeatable.")] = None,
    nic: Annotated[
        list[str] | None,
        typer.Option(
            "--nic",
            "--bridge",
            metavar="BRIDGE",
            help="An interface on this bridge; '' is the user network. Repeatable.",
        ),
    ] = None,
    user_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="User data for cloud-init.", dir_okay=False)
    ] = None,
    ssh_key: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|KEY", help="Public keys that may log in: a file of them, or one. Repeatable."),
    ] = None,
    data_disk: Annotated[
        list[str] | None, typer.Option(metavar="GIB", help="A data disk, as 10 or 10G. Repeatable.")
    ] = None,
    storage: Annotated[StorageKind, typer.Option(help="Where its disks are to be.")] = StorageKind.ANY,
    require_label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label that its node must have. Repeatable.")
    ] = None,
    prefer_label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label that a node is preferred for. Repeatable.")
    ] = None,
    cpu_model: Annotated[
        str, typer.Option(metavar="MODEL", help="'baseline' for one that all nodes have, or a model by its name.")
    ] = "",
    group: Annotated[str, typer.Option(metavar="GROUP", help="The group that it is placed with.")] = "",
    restart_on_failure: Annotated[bool, typer.Option(help="Restart it elsewhere when its node dies.")] = True,
    restart_priority: Annotated[
        Priority, typer.Option(help="When: each level waits until those above it have settled.")
    ] = Priority.MEDIUM,
    ready_when: ReadyWhen = "",
    ready_timeout: ReadyTimeout = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
) -> None:
    """Launch an instance and wait until it runs."""

    async def begin(session: Session) -> "Operation":
        from leeward.v1.instance_pb2 import Instance, NetworkInterface, PlacementRules, RestartPriority, Storage
        from leeward.v1.instance_service_pb2 import CreateInstanceRequest

        full = session.instance(name)
        parent = full.partition("/instances/")[0]
        instance = Instance(
            flavor=names.flavor(flavor),
            image=session.image(image),
            labels=pairs(label or [], option="label"),
            network_interfaces=[NetworkInterface(bridge=each) for each in nic or []],
            data_disks_gib=[_gib(each) for each in data_disk or []],
            storage=Storage.Value("STORAGE_UNSPECIFIED" if storage is StorageKind.ANY else f"STORAGE_{storage.name}"),
            placement=PlacementRules(
                required_labels=pairs(require_label or [], option="require-label"),
                preferred_labels=pairs(prefer_label or [], option="prefer-label"),
            ),
            cpu_model=cpu_model,
            group=group if "/" in group or not group else f"{parent}/groups/{group}",
            cloud_init=_cloud_init(user_data, ssh_key or []),
            restart_on_failure=restart_on_failure,
            restart_priority=RestartPriority.Value(f"RESTART_PRIORITY_{restart_priority.name}"),
            readiness=readiness(ready_when, ready_timeout),
        )
        request = CreateInstanceRequest(
            parent=parent,
            instance_id=names.short(full),
            instance=instance,
            node=node_field(node),
            validate_only=validate_only,
        )
        return await session.client.instances.CreateInstance(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only)


def _cloud_init(user_data: Path | None, ssh_keys: list[str]) -> "CloudInit | None":
    from leeward.v1.instance_pb2 import CloudInit

    if user_data is None and not ssh_keys:
        return None
    keys = [key for given in ssh_keys for key in _public_keys(given)]
    return CloudInit(user_data=_read(user_data) if user_data else b"", ssh_authorized_keys=keys)


def _public_keys(given: str) -> list[str]:
    """The keys in a file, or the one that was given itself: only a key has a space with text behind it."""
    if len(given.split()) > 1 and not Path(given).exists():
        return [given]
    try:
        lines = _read(Path(given)).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgument.field("ssh_key", f"{given} is no text, so it holds no public key") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _gib(text: str) -> int:
    return int(text) if text.isdecimal() else parse_size(text, field="data_disk", unit=GIB)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidArgument.field("file", f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise InvalidArgument.field("file", f"{path} has {len(content)} bytes; at most {_MAX_FILE_BYTES} go")
    return content
