"""`leeward node`: the hosts."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli import complete, names
from leeward.cli.arguments import Etag, Filter, NodeName, NoWait, ValidateOnly, Watch, Yes
from leeward.cli.context import Format
from leeward.cli.failover_control import tell_hold
from leeward.cli.node_leftovers import leftovers, tell_fate
from leeward.cli.session import Session, call, confirm, follow, operate, say, show_begun
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from google.longrunning.operations_pb2 import Operation

    from leeward.v1.node_pb2 import Node
    from leeward.v1.node_service_pb2 import EvacuateNodeResponse

app = typer.Typer(name="node", help="The hosts.", no_args_is_help=True, rich_markup_mode=None)
app.command()(leftovers)


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
            if session.format is Format.TABLE:
                await tell_hold(session)

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
def uncordon(
    ctx: typer.Context,
    name: NodeName,
    bring_back: Annotated[
        bool,
        typer.Option(
            "--bring-back", help="Move back what was drained off it, or restarted elsewhere.", show_default=False
        ),
    ] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Let a node take new instances again; also ends maintenance, and releases it from quarantine."""

    async def work(session: Session) -> None:
        from leeward.v1.node_service_pb2 import UncordonNodeRequest

        request = UncordonNodeRequest(
            name=names.node(name), etag=etag, validate_only=validate_only, bring_back=bring_back
        )
        await tell_fate(session, name)
        node = await session.client.nodes.UncordonNode(request)
        if bring_back and node.current_operation and not validate_only and not no_wait:
            await follow(session, [node.current_operation])
            node = await _get(session, name)
        _show_changed(session, node, validate_only=validate_only)

    call(ctx, work)


class OnFailure(StrEnum):
    """What a drain does when an instance cannot be moved."""

    CONTINUE = "continue"
    STOP = "stop"
    WAIT = "wait"


@app.command()
def drain(
    ctx: typer.Context,
    name: NodeName,
    at_a_time: Annotated[
        int, typer.Option("--at-a-time", metavar="N", min=1, max=64, help="How many instances to move at once.")
    ] = 2,
    retries: Annotated[
        int, typer.Option(metavar="N", min=0, max=10, help="How often to try one again that fails.")
    ] = 2,
    on_failure: Annotated[
        OnFailure,
        typer.Option(help="When one cannot be moved: go on with the others and fail, stop, or wait until it can."),
    ] = OnFailure.CONTINUE,
    maintenance: Annotated[
        bool, typer.Option("--maintenance/--no-maintenance", help="Leave it in maintenance, or only cordoned.")
    ] = True,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; told to whoever asks.")] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Cordon a node and move every instance off it; live, unless an instance's label asks otherwise.

    The label is leeward.dev/drain, and its value live, cold or stay.
    """

    async def begin(session: Session) -> "Operation":
        from leeward.v1 import node_service_pb2 as pb

        request = pb.DrainNodeRequest(
            name=names.node(name),
            etag=etag,
            validate_only=validate_only,
            enter_maintenance=maintenance,
            parallelism=at_a_time,
            retries=retries,
            on_failure=pb.DrainFailurePolicy.Value(f"DRAIN_FAILURE_POLICY_{on_failure.name}"),
            reason=reason,
        )
        return await session.client.nodes.DrainNode(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only)


@app.command()
def fence(
    ctx: typer.Context,
    name: NodeName,
    force: Annotated[
        bool, typer.Option("--force", help="Cut its power even though it is alive.", show_default=False)
    ] = False,
    yes: Yes = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Make sure that a node runs no guest, by the cheapest proof that can be had."""

    async def begin(session: Session) -> "Operation":
        from leeward.v1.node_service_pb2 import FenceNodeRequest

        if force and not validate_only:
            node = await _get(session, name)
            alive = "is alive" if node.heartbeat_alive else "is not alive"
            say(f"{names.short(node.name)} {alive} and holds {node.instance_count} instances.")
            confirm("Cut its power? What runs on it ends, and is restarted elsewhere.", yes=yes)
        request = FenceNodeRequest(name=names.node(name), etag=etag, validate_only=validate_only, force=force)
        return await session.client.nodes.FenceNode(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only)


@app.command()
def remove(
    ctx: typer.Context,
    name: NodeName,
    yes: Yes = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    etag: Etag = "",
) -> None:
    """Take a node out of the cluster: one that is empty and whose agent is stopped, or that is fenced and evacuated."""

    async def begin(session: Session) -> "Operation":
        from leeward.v1.node_service_pb2 import RemoveNodeRequest

        if not validate_only:
            confirm(f"Remove {name} from the cluster?", yes=yes)
        request = RemoveNodeRequest(name=names.node(name), etag=etag, validate_only=validate_only)
        return await session.client.nodes.RemoveNode(request)

    operate(ctx, begin, no_wait=no_wait, validate_only=validate_only, after=f"{name} is removed.")


@app.command()
def plan(ctx: typer.Context, name: NodeName) -> None:
    """Show what would happen if a node died now; exits with an error when not every instance would find a place."""

    async def work(session: Session) -> None:
        from leeward.cli import output
        from leeward.v1.node_service_pb2 import PlanFailoverRequest

        response = await session.client.nodes.PlanFailover(PlanFailoverRequest(name=names.node(name)))
        if session.format in (Format.JSON, Format.YAML):
            output.show_one(response, session.format)
        else:
            output.show_list(response.placements, session.format, full_names=session.all_projects)
        if not response.survivable:
            say("Not every instance would find a place.")
            raise typer.Exit(1)

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
