"""The global options, which may stand before the noun or behind the verb."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from leeward.cli.context import Format, Options


def _remember(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Keep an option that was given. The one behind the verb is read last, so it wins."""
    options = ctx.find_object(Options)
    if options is not None and param.name is not None and value not in (None, []):
        setattr(options, param.name, value)
    return value


def _declared(
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            metavar="HOST:PORT",
            help="A controller; repeat it for several. [LEEWARD_ENDPOINT, joined by commas]",
            callback=_remember,
            expose_value=False,
        ),
    ] = None,
    tls_dir: Annotated[
        Path | None,
        typer.Option(
            "--tls-dir",
            metavar="DIR",
            help="Directory with ca.pem, cert.pem, key.pem. Without it: plain text, to loopback. [LEEWARD_TLS_DIR]",
            callback=_remember,
            expose_value=False,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="PROJECT",
            help="The project that short names are in. [LEEWARD_PROJECT]",
            callback=_remember,
            expose_value=False,
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="NAME",
            help="A context of the configuration file. [LEEWARD_CONTEXT]",
            callback=_remember,
            expose_value=False,
        ),
    ] = None,
    output: Annotated[
        Format | None,
        typer.Option("--output", "-o", help="How results are written.", callback=_remember, expose_value=False),
    ] = None,
) -> None:
    """Carries the declarations below; it is never called."""


@cache
def global_parameters() -> tuple[Any, ...]:
    """The global options as typer keeps parameters, to add to a command's own."""
    app = typer.Typer(add_completion=False)
    app.command()(_declared)
    return tuple(get_command(app).params)
