"""Completion of names at the shell, asked from the cluster."""

from collections.abc import Awaitable, Callable

import typer

from leeward.cli.session import Session, call
from leeward.errors import LeewardError

_DEADLINE_S = 1.0


def instances(ctx: typer.Context, incomplete: str) -> list[str]:
    """The instances of the chosen project that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_instances(session.parent)).items]

    return _matching(ctx, incomplete, names)


def images(ctx: typer.Context, incomplete: str) -> list[str]:
    """The images of the chosen project that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_images(session.parent)).items]

    return _matching(ctx, incomplete, names)


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """The nodes that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_nodes()).items]

    return _matching(ctx, incomplete, names)


def failovers(ctx: typer.Context, incomplete: str) -> list[str]:
    """The failovers that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_failovers()).items]

    return _matching(ctx, incomplete, names)


def backup_policies(ctx: typer.Context, incomplete: str) -> list[str]:
    """The backup policies of the chosen project that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_backup_policies(session.parent)).items]

    return _matching(ctx, incomplete, names)


def flavors(ctx: typer.Context, incomplete: str) -> list[str]:
    """The flavors that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_flavors()).items]

    return _matching(ctx, incomplete, names)


def groups(ctx: typer.Context, incomplete: str) -> list[str]:
    """The groups of the chosen project that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_groups(session.parent)).items]

    return _matching(ctx, incomplete, names)


def projects(ctx: typer.Context, incomplete: str) -> list[str]:
    """The projects with limits that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in (await session.client.list_projects()).items]

    return _matching(ctx, incomplete, names)


def operations(ctx: typer.Context, incomplete: str) -> list[str]:
    """The operations that begin so."""

    async def names(session: Session) -> list[str]:
        return [each.name for each in await session.client.list_operations()]

    return _matching(ctx, incomplete, names)


def _matching(ctx: typer.Context, incomplete: str, ask: Callable[[Session], Awaitable[list[str]]]) -> list[str]:
    from leeward.client import Limits

    async def work(session: Session) -> list[str]:
        return await ask(session)

    try:
        full = call(ctx, work, limits=Limits(deadline_s=_DEADLINE_S, attempt_s=_DEADLINE_S, patience_s=0))
    except LeewardError:
        # A shell that completes has no place for an error: the command itself will tell it.
        return []
    short = [name.rpartition("/")[2] for name in full]
    return [name for name in short if name.startswith(incomplete)]
