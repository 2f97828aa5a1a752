"""Ending long streams when the agent stops, in a way that tells the other side to come back."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

from leeward.errors import Draining

_T = TypeVar("_T")


class Streams:
    """Knows whether the agent is stopping."""

    def __init__(self) -> None:
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End every stream."""
        self._draining.set()

    async def until_draining(self, source: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
        """What `source` yields. Raises Draining when the agent stops; the source is closed in any case."""
        draining = asyncio.create_task(self._draining.wait())
        pending: asyncio.Task[_T] | None = None
        try:
            while True:
                pending = asyncio.ensure_future(anext(source))
                await asyncio.wait((pending, draining), return_when=asyncio.FIRST_COMPLETED)
                if not pending.done():
                    raise Draining("this agent is stopping; watch again when it is back")
                try:
                    item = pending.result()
                except StopAsyncIteration:
                    return
                yield item
        finally:
            draining.cancel()
            if pending is not None and not pending.done():
                pending.cancel()
                await asyncio.wait((pending,))
            await source.aclose()
