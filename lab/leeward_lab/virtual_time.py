"""An event loop on which time is only a number.

Waiting costs nothing: when every task waits, the clock jumps to the next timer. Runs are repeatable, because nothing
depends on how fast the machine is, nor on where objects lie in memory. Code under it must wait through the loop alone:
no threads, no sockets.
"""

import asyncio
import gc
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context, ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
# Two timers so close are due together, as in asyncio's own loops.
_RESOLUTION_S = 1e-9
_MOST_ROUNDS_AT_ONCE = 100_000

process: ContextVar[str] = ContextVar("process", default="")
"""The simulated process to which a task belongs, and all that it starts; see `freeze`."""


class Stuck(Exception):
    """Every task waits for something that no timer will bring about, or some never wait at all."""


class _NumberedTask(asyncio.Task[Any]):
    """A task whose hash is a number of its own.

    asyncio keeps tasks in sets, and a task group cancels its tasks in that order. The usual hash is an address in
    memory, which differs from run to run.
    """

    def __init__(
        self, coro: Coroutine[Any, Any, Any], *, loop: asyncio.AbstractEventLoop, number: int, context: Context | None
    ) -> None:
        self._number = number
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number


class _NumberedFuture(asyncio.Future[Any]):
    """Likewise."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose `time()` moves only by jumping to the next timer.

    One round of it is written anew, and leaner than asyncio's: there are no files to ask for, and timers that are due
    at the same time come in the order in which they were set.
    """

    _ready: deque[asyncio.Handle]  # asyncio's own: what is to be called next.
    _stopping: bool  # Likewise.

    def __init__(self) -> None:
        self._virtual_s = 0.0
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_numbers = itertools.count()
        self._rounds_at_once = 0
        self._frozen: dict[str, list[asyncio.Handle]] = {}
        super().__init__()
        self.set_task_factory(self._make_task)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._timer_numbers), timer))
        return timer

    def _run_once(self) -> None:
        """One round: what was ready when it began, and before it the timers that are due."""
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            self._jump()
        due_s = self._virtual_s + _RESOLUTION_S
        while timers and timers[0][0] <= due_s:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        self._rounds_at_once += 1
        if self._rounds_at_once > _MOST_ROUNDS_AT_ONCE:
            self._rounds_at_once = 0  # Whoever hears of it still has to end what is left.
            raise Stuck("time stands still: something is tried again and again without a pause")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled() or (self._frozen and self._is_kept_back(handle)):
                continue
            handle._run()

    def _jump(self) -> None:
        """Move on to the next timer."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise Stuck("every task waits, and no timer is set")
        if timers[0][0] > self._virtual_s:
            self._virtual_s = timers[0][0]
            self._rounds_at_once = 0

    def freeze(self, name: str) -> None:
        """Stop a process, as SIGSTOP does: nothing of it goes on, neither work nor timeouts, until it is thawed."""
        self._frozen.setdefault(name, [])

    def thaw(self, name: str) -> None:
        """Let it go on where it was, with all that became due meanwhile, in order."""
        self._ready.extend(self._frozen.pop(name, ()))

    def thaw_all(self) -> None:
        """Let all go on."""
        for name in list(self._frozen):
            self.thaw(name)

    def is_frozen(self, name: str) -> bool:
        """Whether a process is stopped."""
        return name in self._frozen

    def _is_kept_back(self, handle: asyncio.Handle) -> bool:
        kept = self._frozen.get(handle._context.get(process, ""))  # type: ignore[attr-defined]
        if kept is None:
            return False
        kept.append(handle)
        return True

    def create_future(self) -> asyncio.Future[Any]:
        return _NumberedFuture(loop=self, number=next(self._numbers))

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """A blocking call takes no time, and no thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  It belongs to whoever awaits the call.
            future.set_exception(error)
        return future

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        assert asyncio.iscoroutine(coro)
        return _NumberedTask(coro, loop=loop, number=next(self._numbers), context=context)

    def time(self) -> float:
        return self._virtual_s


class VirtualClock:
    """A `Clock` of the running virtual loop. `rate` drifts it: 1.01 runs one per cent fast.

    `wall_offset_s` is how far its time of day is off, which may change at any moment.
    """

    def __init__(self, *, rate: float = 1.0) -> None:
        self._rate = rate
        self.wall_offset_s = 0.0

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time() * self._rate

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.monotonic_s() + self.wall_offset_s)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds / self._rate)


def freeze(name: str) -> None:
    """Stop a process of the running virtual loop; see `VirtualTimeLoop.freeze`."""
    _virtual_loop().freeze(name)


def thaw(name: str) -> None:
    """Let it go on. On any other loop nothing was ever stopped."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.thaw(name)


def is_frozen(name: str) -> bool:
    """Whether it is stopped; nothing is on any other loop."""
    loop = asyncio.get_running_loop()
    return isinstance(loop, VirtualTimeLoop) and loop.is_frozen(name)


def _virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop), "processes are frozen on virtual time alone"
    return loop


def run_virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main()` to its end on virtual time, and let nothing of it remain."""

    async def whole() -> T:
        try:
            return await main()
        finally:
            _virtual_loop().thaw_all()  # What is stopped could not end.

    with virtual_runner() as runner:
        return runner.run(whole())


@contextmanager
def virtual_runner() -> Iterator[asyncio.Runner]:
    """Runs one coroutine after another on one virtual loop; in between, time stands still."""
    with _no_collection(), asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        yield runner


@contextmanager
def _no_collection() -> Iterator[None]:
    """The collector closes generators that nobody refers to, at a moment that depends on what ran before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
