"""`leeward node leftovers`: what a host still has of guests that live elsewhere or are deleted."""

from typing import TYPE_CHECKING

import typer

from leeward.cli import names
from leeward.cli.arguments import NodeName
from leeward.cli.context import Format
from leeward.cli.session import Session, call, say

if TYPE_CHECKING:
    from leeward.v1.admin_service_pb2 import ListLeftoversResponse


def leftovers(ctx: typer.Context, name: NodeName) -> None:
    """Show what a host still has of guests that live elsewhere or are deleted.

    A node in quarantine keeps all of it until it is released by `leeward node uncordon`.
    """

    async def work(session: Session) -> None:
        from leeward.cli import output

        found = await list_leftovers(session, name)
        if session.format in (Format.JSON, Format.YAML):
            output.show_one(found, session.format)
            return
        output.show_list(found.leftovers, session.format, full_names=session.all_projects)
        if found.quarantined:
            say(f"{name} is in quarantine and keeps them. `leeward node uncordon {name}` releases it.")

    call(ctx, work)


async def tell_fate(session: Session, name: str) -> None:
    """Before a node is released from quarantine, tell what it has kept and what becomes of that."""
    from leeward.errors import LeewardError
    from leeward.v1.node_pb2 import Node
    from leeward.v1.node_service_pb2 import GetNodeRequest

    node = await session.client.nodes.GetNode(GetNodeRequest(name=names.node(name)))
    if node.condition != Node.CONDITION_QUARANTINED:
        return
    try:
        found = await list_leftovers(session, name)
    except LeewardError as error:
        say(f"What {name} kept in quarantine cannot be told: {error.message}")
        return
    for each in found.leftovers:
        say(f"{each.instance or each.instance_uid}: {each.explanation}; {each.fate}.")


async def list_leftovers(session: Session, name: str) -> "ListLeftoversResponse":
    """What the host has."""
    from leeward.v1.admin_service_pb2 import ListLeftoversRequest

    return await session.client.admin.ListLeftovers(ListLeftoversRequest(name=names.node(name)))
