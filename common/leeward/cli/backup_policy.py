"""`leeward backup-policy`: backups that are taken by themselves."""

from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Etag, ValidateOnly, Yes
from leeward.cli.context import Format
from leeward.cli.session import Session, call, confirm, say
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from leeward.v1.backup_policy_pb2 import BackupPolicy

app = typer.Typer(
    name="backup-policy",
    help="Backups that are taken by themselves. Restore one with `leeward instance rebuild`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PolicyName = Annotated[
    str,
    typer.Argument(metavar="POLICY", help="The backup policy's name.", autocompletion=complete.backup_policies),
]
_SCHEDULE_HELP = "When: minute, hour, day of month, month, day of week, as '0 2 * * *'."
_ZONE_HELP = "The time zone of the schedule, as Europe/Berlin; UTC unless told."
_KEEP_HELP = "How many backups of each instance are kept, 1 to 365."


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="POLICY", help="Its name: a-z, 0-9 and '-'.")],
    schedule: Annotated[str, typer.Option(metavar="CRON", help=_SCHEDULE_HELP)],
    keep: Annotated[int, typer.Option(metavar="N", help=_KEEP_HELP)],
    instance: Annotated[
        list[str],
        typer.Option(metavar="INSTANCE", help="An instance. Repeatable.", autocompletion=complete.instances),
    ],
    time_zone: Annotated[str, typer.Option(metavar="ZONE", help=_ZONE_HELP)] = "",
    paused: Annotated[bool, typer.Option("--paused", help="Let it rest for now.", show_default=False)] = False,
    validate_only: ValidateOnly = False,
) -> None:
    """Make a backup policy."""

    async def work(session: Session) -> None:
        from leeward.v1.backup_policy_pb2 import BackupPolicy
        from leeward.v1.backup_policy_service_pb2 import CreateBackupPolicyRequest

        full = session.backup_policy(name)
        policy = BackupPolicy(
            schedule=schedule,
            time_zone=time_zone,
            keep_count=keep,
            instances=[session.instance(each) for each in instance],
            paused=paused,
        )
        request = CreateBackupPolicyRequest(
            parent=full.partition("/backupPolicies/")[0],
            backup_policy_id=names.short(full),
            backup_policy=policy,
            validate_only=validate_only,
        )
        _show_changed(session, await session.client.backup_policies.CreateBackupPolicy(request), validate_only)

    call(ctx, work)


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List backup policies; those of all projects with `--project -`."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        policies = await session.client.list_backup_policies(session.parent)
        output.show_list(policies.items, session.format, full_names=session.all_projects)

    call(ctx, work)


@app.command()
@app.command("get", hidden=True)
def show(ctx: typer.Context, name: PolicyName) -> None:
    """Show a backup policy: when it ran, when it runs next, and what it could not back up."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_one(await _get(session, name), session.format)

    call(ctx, work)


@app.command()
def update(
    ctx: typer.Context,
    name: PolicyName,
    schedule: Annotated[str | None, typer.Option(metavar="CRON", help=_SCHEDULE_HELP)] = None,
    time_zone: Annotated[str | None, typer.Option(metavar="ZONE", help=_ZONE_HELP)] = None,
    keep: Annotated[int | None, typer.Option(metavar="N", help=_KEEP_HELP)] = None,
    add_instance: Annotated[
        list[str] | None,
        typer.Option(metavar="INSTANCE", help="Cover one more. Repeatable.", autocompletion=complete.instances),
    ] = None,
    remove_instance: Annotated[
        list[str] | None,
        typer.Option(metavar="INSTANCE", help="Cover it no more. Repeatable.", autocompletion=complete.instances),
    ] = None,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Let it rest, or go on.", show_default=False)
    ] = None,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Change a backup policy."""

    async def work(session: Session) -> None:
        from google.protobuf.field_mask_pb2 import FieldMask

        from leeward.v1.backup_policy_pb2 import BackupPolicy
        from leeward.v1.backup_policy_service_pb2 import UpdateBackupPolicyRequest

        given = {"schedule": schedule, "time_zone": time_zone, "keep_count": keep, "paused": paused}
        policy = BackupPolicy(name=session.backup_policy(name), etag=etag)
        changes = [field for field, value in given.items() if value is not None]
        for field in changes:
            setattr(policy, field, given[field])
        if add_instance or remove_instance:
            there = await _get(session, name)
            covered = dict.fromkeys([*there.instances, *map(session.instance, add_instance or [])])
            gone = {session.instance(each) for each in remove_instance or []}
            policy.instances.extend(each for each in covered if each not in gone)
            # The list is changed as it was read, or not at all.
            policy.etag = etag or there.etag
            changes.append("instances")
        if not changes:
            raise InvalidArgument("nothing to change was given")
        request = UpdateBackupPolicyRequest(
            backup_policy=policy, update_mask=FieldMask(paths=sorted(changes)), validate_only=validate_only
        )
        _show_changed(session, await session.client.backup_policies.UpdateBackupPolicy(request), validate_only)

    call(ctx, work)


@app.command()
def delete(
    ctx: typer.Context, name: PolicyName, yes: Yes = False, validate_only: ValidateOnly = False, etag: Etag = ""
) -> None:
    """Remove a backup policy. The backups that it made stay, until they are deleted."""
    if not validate_only:
        confirm(f"Delete the backup policy {name}?", yes=yes)

    async def work(session: Session) -> None:
        from leeward.v1.backup_policy_service_pb2 import DeleteBackupPolicyRequest

        full = session.backup_policy(name)
        request = DeleteBackupPolicyRequest(name=full, etag=etag, validate_only=validate_only)
        await session.client.backup_policies.DeleteBackupPolicy(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif session.format is Format.TABLE:
            print(f"Deleted {name}.")
        else:
            print(full)

    call(ctx, work)


async def _get(session: Session, name: str) -> "BackupPolicy":
    from leeward.v1.backup_policy_service_pb2 import GetBackupPolicyRequest

    request = GetBackupPolicyRequest(name=session.backup_policy(name))
    return await session.client.backup_policies.GetBackupPolicy(request)


def _show_changed(session: Session, policy: "BackupPolicy", validate_only: bool) -> None:
    from leeward.cli import output

    if validate_only:
        say("It is valid. Nothing was changed.")
    else:
        output.show_result(policy, session.format)
