"""`leeward instance`: what is done to one where it is."""

from typing import Annotated, Any

import typer

from leeward.cli.arguments import Etag, InstanceName, NoWait, ValidateOnly, Yes
from leeward.cli.instance_act import Force, GracePeriod, act, duration_fields, grace_fields
from leeward.cli.session import confirm


def start(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Boot a stopped instance."""
    act(ctx, "StartInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def stop(
    ctx: typer.Context,
    name: InstanceName,
    grace_period: GracePeriod = "",
    force: Force = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Shut an instance down: ask the guest, and end it when the grace period is over."""
    fields = grace_fields(grace_period, force=force)
    act(ctx, "StopInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


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
    fields |= duration_fields(timeout=timeout)
    act(ctx, "RebootInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, **fields)


def pause(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Halt an instance's processors, keeping its memory."""
    act(ctx, "PauseInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def unpause(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Let a paused instance run on."""
    act(ctx, "UnpauseInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def suspend(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Write an instance's memory to its pool and end its process."""
    act(ctx, "SuspendInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def resume(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Bring a suspended instance back, on its node or where it was evacuated to."""
    act(ctx, "ResumeInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def crash_dump(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Send an instance a non-maskable interrupt, by which its kernel writes its crash dump."""
    act(ctx, "CrashDumpInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


def delete(
    ctx: typer.Context,
    name: InstanceName,
    yes: Yes = False,
    purge: Annotated[bool, typer.Option("--purge", help="For good, whatever the retention.")] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Delete an instance with its disks, whatever is running on it."""
    if not validate_only:
        confirm(f"Delete {name} with its disks?", yes=yes)
    after = f"Deleted {name}."
    act(ctx, "DeleteInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag, after=after, purge=purge)


def undelete(
    ctx: typer.Context,
    name: InstanceName,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Bring a deleted instance back while it is retained."""
    act(ctx, "UndeleteInstance", name, no_wait=no_wait, validate_only=validate_only, etag=etag)


COMMANDS = (
    ("start", start),
    ("stop", stop),
    ("reboot", reboot),
    ("pause", pause),
    ("unpause", unpause),
    ("suspend", suspend),
    ("resume", resume),
    ("delete", delete),
    ("undelete", undelete),
    ("crash-dump", crash_dump),
)
