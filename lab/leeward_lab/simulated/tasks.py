"""The life of one part: tasks that end together, at once, as a process does."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context, copy_context
from typing import Any

from leeward_lab.virtual_time import process


class Life:
    """Tasks of one process. What ends one of them with an error is kept for whoever asks.

    On virtual time a process with a name can be stopped with `freeze`; it has to be thawed before it is ended.
    """

    def __init__(self, name: str = "") -> None:
        self._context = copy_context()
        self._context.run(process.set, name)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failure: BaseException | None = None
        self.ended = asyncio.Event()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run until the life ends."""
        task = asyncio.get_running_loop().create_task(work, context=self.context())
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def context(self) -> Context:
        """For what is done on behalf of this process by others: its own work, which stops with it."""
        return self._context.copy()

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
