"""The life of one part: tasks that end together, at once, as a process does."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Life:
    """Tasks of one process. What ends one of them with an error is kept for whoever asks."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failure: BaseException | None = None
        self.ended = asyncio.Event()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run until the life ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = self.failure or error

    async def end(self) -> None:
        """Cancel everything and wait for it."""
        self.ended.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
