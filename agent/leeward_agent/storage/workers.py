"""Threads for file work that may hang.

A file operation on a network file system whose server is gone can block for ever and cannot be cancelled. The caller
must get an answer all the same, other work must go on, and the process must be able to end. Hence threads of our own:
few (a hang cannot eat the event loop's default executor), bounded waits, and daemons (an executor of the standard
library is joined when the interpreter ends, and would hang with them).
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar, cast

from leeward.errors import LeewardError, StorageError

T = TypeVar("T")


class _Job(Generic[T]):
    """One call on its way through a thread and back."""

    def __init__(self, what: str, call: Callable[[], T], discard: Callable[[T], None] | None) -> None:
        self._what = what
        self._call = call
        self._discard = discard
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self._lock = threading.Lock()
        self._abandoned = False
        self.begun = False
        self._result: T | None = None
        self._has_result = False

    def abandon(self) -> bool:
        """Nobody waits any more. Answers whether a result is there that must be discarded, in a thread."""
        with self._lock:
            self._abandoned = True
            return self._has_result

    def run(self) -> None:
        with self._lock:
            if self._abandoned:
                return
            self.begun = True
        try:
            result = self._call()
        except OSError as error:
            failure = StorageError(f"{self._what}: {error.strerror or error}")
            failure.__cause__ = error
            self._deliver(lambda: self.future.set_exception(failure))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the waiting task, not to this thread.
            raised = error
            self._deliver(lambda: self.future.set_exception(raised))
        else:
            with self._lock:
                self._result, self._has_result = result, True
                unheard = self._abandoned
            if unheard:
                self.discard()
            else:
                self._deliver(lambda: self.future.set_result(result))

    def discard(self) -> None:
        """Let go of a result that nobody takes."""
        if self._discard is not None:
            _quietly(partial(self._discard, cast(T, self._result)))

    def _deliver(self, settle: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())
        except RuntimeError:
            # The loop has been closed, so nobody can be waiting.
            return


class Workers:
    """At most `count` daemon threads, started when needed, that take calls in order."""

    def __init__(self, name: str, *, count: int) -> None:
        self._name = name
        self._count = count
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiting = 0

    async def run(
        self, what: str, call: Callable[[], T], *, bound_s: float, discard: Callable[[T], None] | None = None
    ) -> T:
        """The result of `call` from a thread.

        Raises StorageError when it fails with an OSError, or is not done within `bound_s`. A call that had begun then
        runs on in its thread, unheard, and its result goes to `discard`; one that had not begun is dropped. So it is
        when the caller is cancelled.
        """
        job = _Job(what, call, discard)
        self._tasks.put(job.run)
        self._waiting += 1
        if self._waiting > len(self._threads) and len(self._threads) < self._count:
            self._start_thread()
        try:
            await asyncio.wait({job.future}, timeout=bound_s)
        except asyncio.CancelledError:
            self._abandon(job)
            raise
        finally:
            self._waiting -= 1
        if job.future.done():
            return job.future.result()
        self._abandon(job)
        how = "it hangs" if job.begun else "earlier calls hang"
        raise StorageError(f"{what}: not done within {bound_s:g} s ({how})")

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` done, unheard: for letting go of things when there is no time, or no right, to wait."""
        self._tasks.put(partial(_quietly, call))

    def _abandon(self, job: _Job[T]) -> None:
        if job.abandon():
            self._tasks.put(job.discard)
        if job.future.done() and not job.future.cancelled():
            job.future.exception()  # Taken note of; the caller has gone.
        job.future.cancel()

    def close(self) -> None:
        """Let the threads end after what they are doing. Does not wait for them."""
        for _ in self._threads:
            self._tasks.put(None)
        self._threads.clear()

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=_serve, args=(self._tasks,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def _quietly(call: Callable[[], None]) -> None:
    # There is nobody to tell. What stays behind is found and removed at the next attempt, or when the pool is opened.
    with contextlib.suppress(OSError, LeewardError):
        call()


def _serve(tasks: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (task := tasks.get()) is not None:
        task()
