"""`leeward instance`: virtual machines."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Etag, Filter, InstanceName, NoWait, ValidateOnly, Watch, Yes
from leeward.cli.console import console_log
from leeward.cli.session import Session, call, confirm, operate
from leeward.cli.units import parse_duration
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from google.longrunning.operations_pb2 import Operation

    from leeward.v1.instance_pb2 import Instance

app = typer.Typer(name="instance", help="Virtual machines.", no_args_is_help=True, rich_markup_mode=None)

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

_MAX_USER_DATA_BYTES = 64 * 1024


@app.command()
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
    bridge: Annotated[
        list[str] | None,
        typer.Option(metavar="BRIDGE", help="An interface on this bridge; '' is the user network. Repeatable."),
    ] = None,
    user_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="User data for cloud-init.", dir_okay=False)
    ] = None,
    ssh_key: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A public key that may log in. Repeatable.")
    ] = None,
    restart_on_failure: Annotated[bool, typer.Option(help="Restart it elsewhere when its node dies.")] = True,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
) -> None:
    """Launch an instance and wait until it runs."""

    async def begin(session: Session) -> "Operation":
        from leeward.v1.instance_pb2 import CloudInit, Instance, NetworkInterface
        from leeward.v1.instance_service_pb2 import CreateInstanceRequest

        full = session.instance(name)
        instance = Instance(
            flavor=names.flavor(flavor),
            image=session.image(image),
            labels=_labels(label or []),
            network_interfaces=[NetworkInterface(bridge=each) for each in bridge or []],
            restart_on_failure=restart_on_failure,
        )
        if user_data or ssh_key:
            keys = [line for path in ssh_key or [] for line in _read(path).decode().splitlines() if line.strip()]
            instance.cloud_init.CopyFrom(
                CloudInit(user_data=_read(user_data) if user_data else b"", ssh_authorized_keys=keys)
            )
        request = CreateInstanceRequest(
            parent=full.partition("/instances/")[0],
            instance_id=names.short(full),
            instance=instance,
            node=names.node(node) if node else "",
            validate_only=validate_only,
        )
        return await session.client.instances.CreateInstance(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only)


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


@app.command()
def start(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Boot a stopped instance."""
    _act(ctx, "StartInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


@app.command()
def stop(
    ctx: typer.Context,
    name: InstanceName,
    grace_period: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the guest may take, as 30s; 60s unless told.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Do not ask the guest, end it at once.")] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Shut an instance down: ask the guest, and end it when the grace period is over."""
    if force and grace_period:
        raise InvalidArgument.field("force", "the guest gets no grace period then; give one or the other")
    given = "0s" if force else grace_period
    fields: dict[str, Any] = {"grace_period": parse_duration(given, field="grace_period")} if given else {}
    _act(ctx, "StopInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


@app.command()
def reboot(
    ctx: typer.Context,
    name: InstanceName,
    hard: Annotated[bool, typer.Option("--hard", help="Reset it at once.")] = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="When asking becomes a reset, as 30s; 60s unless told.")
    ] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Restart an instance where it is."""
    fields: dict[str, Any] = {"mode": "REBOOT_MODE_HARD" if hard else "REBOOT_MODE_SOFT"}
    if timeout:
        fields["timeout"] = parse_duration(timeout, field="timeout")
    _act(ctx, "RebootInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


@app.command()
def delete(
    ctx: typer.Context,
    name: InstanceName,
    yes: Yes = False,
    purge: Annotated[bool, typer.Option("--purge", help="For good, whatever the retention.")] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Delete an instance with its disk, whatever is running on it."""
    if not validate_only:
        confirm(f"Delete {name} with its disk?", yes=yes)
    _act(
        ctx,
        "DeleteInstance",
        name,
        no_wait=no_wait,
        validate_only=validate_only,
        after=f"Deleted {name}.",
        etag=etag,
        purge=purge,
    )


@app.command("live-migrate")
def live_migrate(
    ctx: typer.Context,
    name: InstanceName,
    to: ToNode = "",
    bandwidth: Annotated[
        int, typer.Option(metavar="MIB_PER_S", min=0, help="At most so many MiB a second; 0: no limit.")
    ] = 0,
    max_downtime: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the guest may stand still, as 300ms.")
    ] = "",
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="When to give up, as 10m.")] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Move an instance to another node while it runs."""
    fields: dict[str, Any] = {"max_bandwidth_mib_per_second": bandwidth, "node": names.node(to) if to else ""}
    if max_downtime:
        fields["max_downtime"] = parse_duration(max_downtime, field="max_downtime")
    if timeout:
        fields["timeout"] = parse_duration(timeout, field="timeout")
    _act(ctx, "LiveMigrateInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


@app.command()
def evacuate(
    ctx: typer.Context,
    name: InstanceName,
    to: ToNode = "",
    allow_rebuild: Annotated[
        bool, typer.Option("--allow-rebuild", help="Make it anew from its image where its disk is lost.")
    ] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Restart an instance of a fenced node elsewhere."""
    node = names.node(to) if to else ""
    _act(
        ctx,
        "EvacuateInstance",
        name,
        no_wait=no_wait,
        validate_only=validate_only,
        etag=etag,
        node=node,
        allow_rebuild=allow_rebuild,
    )


@app.command()
def events(ctx: typer.Context, name: InstanceName) -> None:
    """List what was done to an instance, oldest first."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_list(await session.client.list_instance_events(session.instance(name)), session.format)

    call(ctx, work)


app.command("console-log")(console_log)


def _act(
    ctx: typer.Context, method: str, name: str, *, no_wait: bool, validate_only: bool, after: str = "", **fields: Any
) -> None:
    """Begin `method` of the instance service on one instance. `fields` are those of its request."""

    async def begin(session: Session) -> "Operation":
        from leeward.v1 import instance_service_pb2

        kind = getattr(instance_service_pb2, f"{method}Request")
        request = kind(name=session.instance(name), validate_only=validate_only, **fields)
        call_method: Callable[[Any], Awaitable[Operation]] = getattr(session.client.instances, method)
        return await call_method(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only, after=after)


def _labels(texts: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise InvalidArgument.field("label", f"{text!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidArgument.field("file", f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_USER_DATA_BYTES:
        raise InvalidArgument.field("file", f"{path} has {len(content)} bytes; at most {_MAX_USER_DATA_BYTES} go")
    return content
