"""A few threads of our own for blocking calls."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """A fixed number of threads, started when first needed, that run blocking calls in order of arrival.

    They are daemon threads, unlike those of `ThreadPoolExecutor`: a thread that waits for a libvirtd which has stopped
    answering must not keep the agent from ending.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self._name = name
        self._threads = threads
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._started = 0

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` in a thread. Cancelling the future before a thread takes it up means it never runs."""
        future: Future[T] = Future()
        self._queue.put((future, function))
        if self._started < self._threads:
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        return future

    def stop(self) -> None:
        """Let the threads end once what was submitted is done; returns at once."""
        for _ in range(self._started):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, function = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - it is not ours: whoever awaits the future gets it.
                future.set_exception(error)
            else:
                future.set_result(result)
            # A waiting thread must not keep the last call, and with it a libvirt connection, alive.
            del item, future, function
