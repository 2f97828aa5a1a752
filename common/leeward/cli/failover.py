"""`leeward failover`: what is done when nodes die, and the operators' hold on it."""

import typer

from leeward.cli import failover_control, failover_records

app = typer.Typer(
    name="failover",
    help="What is done when nodes die, and the operators' hold on it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command("list")(failover_records.list_)
app.command("show")(failover_records.show)
app.command("drill")(failover_records.drill)
app.command("status")(failover_control.status)
app.command("disarm")(failover_control.disarm)
app.command("arm")(failover_control.arm)
app.command("release-brake")(failover_control.release_brake)
