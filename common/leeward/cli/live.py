"""A list that keeps itself up to date: a live table at a terminal, else a line for each row that changed."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from leeward.cli import output
from leeward.cli.columns import cells_of, headers_of, name_of
from leeward.cli.context import Format
from leeward.cli.session import Session

if TYPE_CHECKING:
    from google.protobuf.message import Message

# Often enough to look live, seldom enough that a busy cluster is not asked all the time.
_SHORTEST_S = 0.25
_LONGEST_S = 2.0

Fetch = Callable[[], "Awaitable[Sequence[Message]]"]


async def watch_list(session: Session, fetch: Fetch, changes: AsyncIterator[Any]) -> None:
    """Show what `fetch` answers, again after each of `changes` and at least every two seconds. Endless."""
    changed = asyncio.Event()

    async def notice() -> None:
        async for _ in changes:
            changed.set()

    show = _live_table(session, fetch, changed)
    if session.format is not Format.TABLE or not sys.stdout.isatty():
        show = _changed_rows(session, fetch, changed)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(notice())
            group.create_task(show())
    except BaseExceptionGroup as group:
        # Each of the two can fail alone, and that is the error to tell.
        raise group.exceptions[0] from group


async def _rest(changed: asyncio.Event) -> None:
    """Until something has changed, or it is time to look anyway."""
    await asyncio.sleep(_SHORTEST_S)
    try:
        async with asyncio.timeout(_LONGEST_S):
            await changed.wait()
    except TimeoutError:
        # Some things change without being told, as what is free on a node.
        return
    finally:
        changed.clear()


def _live_table(session: Session, fetch: Fetch, changed: asyncio.Event) -> Callable[[], Any]:
    async def show() -> None:
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False, screen=True) as live:
            while True:
                items = await fetch()
                lines = output.table_lines(items, full_names=session.all_projects) if items else ["There are none."]
                live.update(Text.from_ansi("\n".join(lines)), refresh=True)
                await _rest(changed)

    return show


def _changed_rows(session: Session, fetch: Fetch, changed: asyncio.Event) -> Callable[[], Any]:
    async def show() -> None:
        seen: dict[str, tuple[tuple[str, ...], Message]] = {}
        while True:
            now = {name_of(item): (_without_age(item), item) for item in await fetch()}
            for name in sorted(seen.keys() - now.keys()):
                output.show_event("REMOVED", seen[name][1], session.format, full_names=session.all_projects)
            for name, (row, item) in now.items():
                if name not in seen or seen[name][0] != row:
                    kind = "MODIFIED" if name in seen else "ADDED"
                    output.show_event(kind, item, session.format, full_names=session.all_projects)
            seen = now
            await _rest(changed)

    return show


def _without_age(item: "Message") -> tuple[str, ...]:
    """The row without the cell that changes by itself."""
    return tuple(cell for header, cell in zip(headers_of(item), cells_of(item), strict=True) if header != "AGE")
