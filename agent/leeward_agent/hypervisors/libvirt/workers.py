"""A few threads of our own for blocking calls."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """At most so many threads, started when those there are are busy, that run blocking calls in order of arrival.

    They are daemon threads, unlike those of `ThreadPoolExecutor`: a thread that waits for a libvirtd which has stopped
    answering must not keep the agent from ending. Each runs `at_end` when it ends.
    """

    def __init__(self, name: str, *, threads: int, at_end: Callable[[], None]) -> None:
        self._name = name
        self._threads = threads
        self._at_end = at_end
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._unfinished = 0

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` in a thread. Cancelling the future before a thread takes it up means it never runs."""
        future: Future[T] = Future()
        with self._lock:
            self._unfinished += 1
            starts = self._unfinished > self._started and self._started < self._threads
            self._started += starts
            number = self._started
        self._queue.put((future, function))
        if starts:
            threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True).start()
        return future

    def stop(self) -> None:
        """Let the threads end once what was submitted is done; returns at once."""
        for _ in range(self._started):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, function = item
            try:
                _settle(future, function)
            finally:
                with self._lock:
                    self._unfinished -= 1
            # A waiting thread must not keep what the last call referred to alive.
            del item, future, function
        self._at_end()


def _settle(future: "Future[T]", function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - it is not ours: whoever awaits the future gets it.
        future.set_exception(error)
    else:
        future.set_result(result)
