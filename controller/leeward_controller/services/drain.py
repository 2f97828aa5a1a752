"""Stopping without breaking anybody off: streams end on purpose, with what their clients need to resume elsewhere."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

from leeward.errors import Draining

T = TypeVar("T")


class Drain:
    """Tells every stream of a server that it is stopping."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the server is stopping."""
        return self._begun.is_set()

    def begin(self) -> None:
        """End all streams, now and from now on."""
        self._begun.set()

    async def wait(self) -> None:
        """Until the server is stopping."""
        await self._begun.wait()

    async def until(self, source: AsyncIterator[T], *, revision: Callable[[], int]) -> AsyncGenerator[T, None]:
        """The items of `source`. Raises Draining, with the revision to resume from, when the server is stopping.

        `source` is not closed by this; whoever made it does that.
        """
        ending = asyncio.ensure_future(self._begun.wait())
        try:
            while True:
                following = asyncio.ensure_future(_next(source))
                try:
                    await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        raise _draining(revision())
                    item = following.result()
                finally:
                    await _cancelled(following)
                if item is None:
                    return
                yield item[0]
        finally:
            await _cancelled(ending)


async def _next(source: AsyncIterator[T]) -> tuple[T] | None:
    """The next item in a tuple, or None at the end: a task cannot carry StopAsyncIteration."""
    async for item in source:
        return (item,)
    return None


async def _cancelled(task: "asyncio.Task[T]") -> None:
    task.cancel()
    await asyncio.wait({task})


def _draining(revision: int) -> Draining:
    return Draining(
        f"this controller is stopping; go on with another one from revision {revision}",
        metadata={"revision": str(revision)},
        retry_after_s=0.1,
    )
