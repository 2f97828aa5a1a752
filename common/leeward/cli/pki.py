"""`leeward pki`: make the cluster's certificate authority and its certificates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from leeward.pki_info import CertificateInfo

app = typer.Typer(name="pki", help="Make and inspect the cluster's certificates.", no_args_is_help=True)

_SOON_DAYS = 30

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the CA.", file_okay=False)]


@app.command()
def init(directory: Directory) -> None:
    """Make a certificate authority in DIR. An existing one is never overwritten.

    Keep DIR/ca-key.pem offline or on one machine: whoever holds it can join the cluster as anybody.
    """
    from rich.console import Console

    from leeward.pki import CA_KEY_FILE, init_ca

    authority = init_ca(directory)
    console = Console()
    end = authority.certificate.not_valid_after_utc
    console.print(f"Made a CA in [bold]{directory}[/bold], valid until {end:%Y-%m-%d}.", highlight=False)
    console.print(f"Guard {directory / CA_KEY_FILE}: it signs for every role.", highlight=False)


@app.command()
def issue(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="admin, client, controller, agent or etcd.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is for; for an agent, the node's name.")],
    directory: Directory,
    san: Annotated[
        list[str] | None,
        typer.Option("--san", metavar="IP|NAME", help="An address or DNS name that others dial it by. Repeatable."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Renew: put the new one in the old one's place.")] = False,
) -> None:
    """Issue a certificate, valid for a year, into DIR/ROLE-NAME: ca.pem, cert.pem and key.pem.

    Copy that directory to where the program runs. Nothing else of DIR belongs there.
    """
    from rich.console import Console

    from leeward.identity import parse_role
    from leeward.pki import CertificateAuthority
    from leeward.pki_info import describe
    from leeward.tls import CERT_FILE

    authority = CertificateAuthority.load(directory)
    material = authority.issue(parse_role(role), name, sans=san or [])
    target = authority.write(material, replace=replace)
    info = describe(target / CERT_FILE)
    console = Console()
    console.print(f"Issued [bold]{info.common_name}[/bold] into {target}", highlight=False)
    console.print(f"valid until {info.not_after:%Y-%m-%d}", highlight=False)
    if info.sans:
        console.print(f"proves {', '.join(info.sans)}", highlight=False)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A CA's directory, a certificate's, or a PEM file.")],
    fail_within_days: Annotated[
        int, typer.Option("--fail-within", metavar="DAYS", help="Exit with 1 when one expires in less than DAYS days.")
    ] = 0,
) -> None:
    """Show certificates: who they are for, the names they prove, and when they expire."""
    from rich.console import Console

    from leeward.clock import SystemClock
    from leeward.pki_info import describe_all

    now = SystemClock().now()
    infos = describe_all(path)
    Console().print(_table(infos, now))
    if any(info.days_left(now) < fail_within_days for info in infos):
        raise typer.Exit(1)


def _table(infos: "list[CertificateInfo]", now: "datetime") -> object:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for header in ("name", "proves", "expires", "days left", "sha-256"):
        # A name that is cut short is of no use, so it is folded instead.
        table.add_column(header, overflow="fold")
    for info in infos:
        days = info.days_left(now)
        style = "red" if days < 0 else "yellow" if days < _SOON_DAYS else ""
        left = "expired" if days < 0 else f"{days:.0f}"
        table.add_row(
            info.common_name, "\n".join(info.sans), f"{info.not_after:%Y-%m-%d}", left, info.sha256[:16], style=style
        )
    return table
