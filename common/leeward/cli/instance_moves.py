"""`leeward instance`: what gives one another place or another size."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Etag, InstanceName, NoWait, ValidateOnly
from leeward.cli.instance_act import Force, GracePeriod, ToNode, act, duration_fields, grace_fields, node_field


class Escalation(StrEnum):
    """How far a live migration may go with a guest that changes its memory fast."""

    NONE = "none"  # Only copy, and give up at the timeout.
    AUTO_CONVERGE = "auto-converge"  # Slow its processors down.
    POST_COPY = "post-copy"  # Then switch over and fetch the rest; the guest is lost if either host dies meanwhile.
    PAUSE = "pause"  # Halt it until the rest is copied.


def migrate(
    ctx: typer.Context,
    name: InstanceName,
    to: ToNode = "",
    grace_period: GracePeriod = "",
    force: Force = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Move an instance to another node by stopping it here and starting it there."""
    fields = grace_fields(grace_period, force=force)
    node = node_field(to)
    act(ctx, "MigrateInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, node=node, **fields)


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
    escalation: Annotated[
        Escalation, typer.Option(help="How far to go with a guest that changes its memory fast.")
    ] = Escalation.AUTO_CONVERGE,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="When to give up, as 10m.")] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Move an instance to another node while it runs."""
    fields: dict[str, Any] = {
        "max_bandwidth_mib_per_second": bandwidth,
        "node": node_field(to),
        "escalation": f"MIGRATION_ESCALATION_{escalation.name}",
    }
    fields |= duration_fields(max_downtime=max_downtime, timeout=timeout)
    act(ctx, "LiveMigrateInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


def evacuate(
    ctx: typer.Context,
    name: InstanceName,
    to: ToNode = "",
    allow_rebuild: Annotated[
        bool,
        typer.Option(
            "--allow-rebuild", help="Make it anew from its latest backup or its image where its disk is lost."
        ),
    ] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Restart an instance of a fenced node elsewhere."""
    fields: dict[str, Any] = {"node": node_field(to), "allow_rebuild": allow_rebuild}
    act(ctx, "EvacuateInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


def resize(
    ctx: typer.Context,
    name: InstanceName,
    flavor: Annotated[str, typer.Option(help="Its new size.", autocompletion=complete.flavors)],
    to: ToNode = "",
    auto_confirm: Annotated[
        str, typer.Option("--auto-confirm", metavar="DURATION", help="Confirm by itself after this, as 1h; else never.")
    ] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Give an instance another flavor. What it had is kept until `confirm-resize` or `revert-resize`."""
    fields: dict[str, Any] = {"flavor": names.flavor(flavor), "node": node_field(to)}
    fields |= duration_fields(auto_confirm_after=auto_confirm)
    act(ctx, "ResizeInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


def confirm_resize(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Keep the new flavor, and free what the old one held."""
    act(ctx, "ConfirmResize", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def revert_resize(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Go back to the flavor, disk and node before a resize."""
    act(ctx, "RevertResize", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


COMMANDS = (
    ("migrate", migrate),
    ("live-migrate", live_migrate),
    ("evacuate", evacuate),
    ("resize", resize),
    ("confirm-resize", confirm_resize),
    ("revert-resize", revert_resize),
)
