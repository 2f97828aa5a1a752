"""`leeward node`: the hosts."""

from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Etag, Filter, NodeName, NoWait, ValidateOnly, Watch, Yes
from leeward.cli.session import Session, call, confirm, follow, say, show_begun
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from leeward.v1.node_pb2 import Node
    from leeward.v1.node_service_pb2 import EvacuateNodeResponse

app = typer.Typer(name="node", help="The hosts.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(ctx: typer.Context, filter: Filter = "", watch: Watch = False) -> None:
    """List nodes: their condition, and what instances hold of them."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        async def fetch() -> "tuple[Node, ...]":
            return (await session.client.list_nodes(filter=filter)).items

        if watch:
            from leeward.cli.live import watch_list

            await watch_list(session, fetch, session.client.watch_nodes())
        else:
            output.show_list(await fetch(), session.format)

    call(ctx, work)


@app.command()
def get(ctx: typer.Context, name: NodeName) -> None:
    """Show all that is known of a node, its fence proof too."""

    async def work(session: Session) -> None:
        from leeward.cli import output

        output.show_one(await _get(session, name), session.format)

    call(ctx, work)


@app.command()
def cordon(
    ctx: typer.Context,
    name: NodeName,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; told to whoever asks.")] = "",
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Keep new instances away from a node. What runs on it goes on."""

    async def work(session: Session) -> None:
        from leeward.v1.node_service_pb2 import CordonNodeRequest

        request = CordonNodeRequest(name=names.node(name), etag=etag, validate_only=validate_only, reason=reason)
        _show_changed(session, await session.client.nodes.CordonNode(request), validate_only=validate_only)

    call(ctx, work)


@app.command()
def uncordon(ctx: typer.Context, name: NodeName, validate_only: ValidateOnly = False, etag: Etag = "") -> None:
    """Let a node take new instances again; also releases it from quarantine."""

    async def work(session: Session) -> None:
        from leeward.v1.node_service_pb2 import UncordonNodeRequest

        request = UncordonNodeRequest(name=names.node(name), etag=etag, validate_only=validate_only)
        _show_changed(session, await session.client.nodes.UncordonNode(request), validate_only=validate_only)

    call(ctx, work)


@app.command("attest-fenced")
def attest_fenced(
    ctx: typer.Context,
    name: NodeName,
    evidence: Annotated[str, typer.Option(metavar="TEXT", help="How you know that it is off and stays off.")],
    boot_id: Annotated[
        str, typer.Option(metavar="ID", help="The boot that is over, as `node get` shows; asked for when left out.")
    ] = "",
    yes: Yes = False,
    validate_only: ValidateOnly = False,
) -> None:
    """Say that a node is off and stays off, so that its instances are started elsewhere.

    Be sure: when it still runs, its guests run twice and destroy their disks.
    """
    if yes and not boot_id:
        raise InvalidArgument.field("boot_id", "with --yes, say which boot you looked at: --boot-id ID")

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.node_service_pb2 import AttestNodeFencedRequest

        node = await _get(session, name)
        if not validate_only:
            output_lines = [f"{names.short(node.name)}, boot {node.boot_id}, holds {node.instance_count} instances."]
            say("\n".join(output_lines))
            confirm("Is this boot over for certain, and the node off?", yes=yes)
        request = AttestNodeFencedRequest(
            name=node.name, boot_id=boot_id or node.boot_id, evidence=evidence, validate_only=validate_only
        )
        proof = await session.client.nodes.AttestNodeFenced(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        else:
            output.show_one(proof, session.format)

    call(ctx, work)


@app.command()
def evacuate(
    ctx: typer.Context,
    name: NodeName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NODE",
            help="The node to go to, and no other; without it the scheduler chooses.",
            autocompletion=complete.nodes,
        ),
    ] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Restart the instances of a fenced node elsewhere."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.node_service_pb2 import EvacuateNodeRequest

        request = EvacuateNodeRequest(
            name=names.node(name), etag=etag, validate_only=validate_only, target_node=names.node(to) if to else ""
        )
        response = await session.client.nodes.EvacuateNode(request)
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif no_wait:
            show_begun(session, response.operations)
        else:
            done = await follow(session, [each.name for each in response.operations])
            output.show_list(done, session.format, full_names=True)
        _tell_refusals(response)

    call(ctx, work)


async def _get(session: Session, name: str) -> "Node":
    from leeward.v1.node_service_pb2 import GetNodeRequest

    return await session.client.nodes.GetNode(GetNodeRequest(name=names.node(name)))


def _show_changed(session: Session, node: "Node", *, validate_only: bool) -> None:
    from leeward.cli import output

    if validate_only:
        say("It is valid. Nothing was changed.")
    else:
        output.show_result(node, session.format)


def _tell_refusals(response: "EvacuateNodeResponse") -> None:
    """Tell which instances stay where they are, and raise the first of the reasons."""
    from leeward.cli.errors import one_line
    from leeward.rpc.status import error_from

    if not response.refusals:
        return
    refusals = [(refusal.instance, error_from(refusal.status)) for refusal in response.refusals]
    for instance, error in refusals:
        say(f"Not evacuated: {instance}: {one_line(error)}")
    raise refusals[0][1]
