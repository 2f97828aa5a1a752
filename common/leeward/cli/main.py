"""`leeward`: the command line of the API. Nothing heavy is imported before a command needs it."""

import sys
from collections.abc import Sequence
from typing import Annotated, Protocol, runtime_checkable

import typer
from typer.main import get_command

from leeward.cli.context import Format, Options
from leeward.cli.exit_codes import EPILOG, ExitCode, exit_code_of
from leeward.cli.lazy import LazyGroup, Noun
from leeward.errors import LeewardError


class _Root(LazyGroup):
    """The commands of `leeward`."""

    nouns = {  # noqa: RUF012 (never changed)
        "instance": Noun("leeward.cli.instance", "Virtual machines."),
        "node": Noun("leeward.cli.node", "The hosts."),
        "failover": Noun("leeward.cli.failover", "What is done when nodes die, and the operators' hold on it."),
        "image": Noun("leeward.cli.image", "Disk images to make instances from."),
        "flavor": Noun("leeward.cli.flavor", "The sizes that instances can have."),
        "backup-policy": Noun("leeward.cli.backup_policy", "Backups that are taken by themselves."),
        "group": Noun("leeward.cli.group", "Instances that are kept together or apart."),
        "project": Noun("leeward.cli.project", "Projects and their limits."),
        "operation": Noun("leeward.cli.operation", "What is being done, and has been."),
        "pki": Noun("leeward.cli.pki", "Make and inspect the cluster's certificates.", connected=False),
        "admin": Noun(
            "leeward.cli.admin",
            "Set up etcd for a cluster, and audit the cluster.",
            connected=False,
            also_connected=frozenset({"audit"}),
        ),
    }


app = typer.Typer(
    name="leeward",
    cls=_Root,
    help="Virtual machines on a cluster of ordinary hosts, kept running.",
    epilog=EPILOG,
    no_args_is_help=True,
    # Rich makes prettier help, but its import alone takes longer than all the rest.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"leeward {version('leeward')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@runtime_checkable
class _ShowsItself(Protocol):
    """A usage error of typer's."""

    def show(self) -> None:
        """Tell it on standard error, with the usage of the command."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Errors are told on standard error, as JSON with `-o json`."""
    options = Options()
    try:
        # Typer hands on the code of typer.Exit as a result when it may not end the process itself.
        code = get_command(app).main(args=list(arguments), prog_name="leeward", standalone_mode=False, obj=options)
    except LeewardError as error:
        from leeward.cli.errors import report

        report(error, options.format)
        return exit_code_of(error)
    except typer.TyperException as error:
        if options.format is Format.JSON or not isinstance(error, _ShowsItself):
            from leeward.cli.errors import report_usage

            report_usage(error.format_message())
        else:
            error.show()
        return error.exit_code
    except typer.Abort:
        typer.echo("Aborted.", err=True)
        return ExitCode.FAILED
    return code if isinstance(code, int) else ExitCode.OK


def main() -> None:
    """The program."""
    sys.exit(run(sys.argv[1:]))
