"""`leeward admin`: set up etcd for a cluster, and audit the cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli.audit import audit
from leeward.errors import PermissionDenied
from leeward.identity import ETCD_SERVER_NAME, Principal, Role

if TYPE_CHECKING:
    from leeward.store.etcd import EtcdAuth

app = typer.Typer(
    name="admin",
    help="Set up etcd for a cluster, and audit the cluster.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command()(audit)

Etcd = Annotated[
    list[str],
    typer.Option("--etcd", metavar="HOST:PORT", help="A member of etcd. Repeatable.", envvar="LEEWARD_ETCD"),
]
TlsDir = Annotated[
    Path,
    typer.Option(
        "--tls-dir",
        metavar="DIR",
        help="Directory with ca.pem, and cert.pem and key.pem of an admin.",
        envvar="LEEWARD_TLS_DIR",
        file_okay=False,
    ),
]
NodeId = Annotated[str, typer.Argument(metavar="NODE", help="The node's name, as in its agent's certificate.")]


@app.command("init-etcd")
def init_etcd(
    etcd: Etcd,
    tls_dir: TlsDir,
    controller: Annotated[
        list[str], typer.Option(metavar="NAME", help="A controller, as named in its certificate. Repeatable.")
    ],
    admin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another admin, beside yourself. Repeatable.")
    ] = None,
) -> None:
    """Make etcd's users and have it enforce their rights.

    Controllers may read and write Leeward's keys, admins everything, nodes nothing until `add-node`. May be repeated,
    to add a controller or an admin. etcd must run with --client-cert-auth.
    """

    async def work(auth: "EtcdAuth", me: Principal) -> None:
        from leeward import keys

        controllers = [Principal.of(Role.CONTROLLER, name).common_name for name in controller]
        admins = [me.common_name, *(Principal.of(Role.ADMIN, name).common_name for name in admin or [])]
        await auth.bootstrap(prefix=keys.ROOT, controllers=controllers, admins=list(dict.fromkeys(admins)))
        await auth.enable()
        print(f"etcd lets {', '.join(controllers)} use {keys.ROOT}, and {', '.join(admins)} do everything.")

    _with_auth(etcd, tls_dir, work)


@app.command("add-node")
def add_node(node: NodeId, etcd: Etcd, tls_dir: TlsDir) -> None:
    """Let a node's agent write its own heartbeat in etcd, and nothing else."""

    async def work(auth: "EtcdAuth", _: Principal) -> None:
        from leeward import keys

        user = Principal.of(Role.AGENT, node).common_name
        await auth.add_node_user(user, keys.lease(node))
        print(f"{user} may write {keys.lease(node)}.")

    _with_auth(etcd, tls_dir, work)


@app.command("remove-node")
def remove_node(node: NodeId, etcd: Etcd, tls_dir: TlsDir) -> None:
    """Take a node's rights in etcd away; its heartbeat ends with them."""

    async def work(auth: "EtcdAuth", _: Principal) -> None:
        user = Principal.of(Role.AGENT, node).common_name
        await auth.remove_node_user(user)
        print(f"{user} has no rights in etcd.")

    _with_auth(etcd, tls_dir, work)


def _with_auth(etcd: list[str], tls_dir: Path, work: "Callable[[EtcdAuth, Principal], Awaitable[None]]") -> None:
    from leeward.client import parse_endpoints
    from leeward.clock import SystemClock
    from leeward.store.etcd import EtcdAuth, EtcdTls
    from leeward.tls import TlsMaterial

    endpoints = parse_endpoints(etcd)
    material = TlsMaterial.load(tls_dir)
    me = material.principal
    if me.role is not Role.ADMIN:
        # etcd would only say that it knows no such user, or refuse in words of its own.
        raise PermissionDenied(f"{me} is no admin, and only admins may set up etcd")
    tls = EtcdTls(
        ca_pem=material.ca_pem,
        cert_pem=material.cert_pem,
        key_pem=material.key_pem,
        server_names=dict.fromkeys(endpoints, ETCD_SERVER_NAME),
    )

    async def run() -> None:
        auth = EtcdAuth(endpoints, tls=tls, clock=SystemClock())
        try:
            await work(auth, me)
        finally:
            await auth.close()

    asyncio.run(run())
