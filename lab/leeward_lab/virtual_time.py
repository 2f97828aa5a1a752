"""An event loop on which time is only a number.

Waiting costs nothing: when every task waits, the clock jumps to the next timer. Runs are repeatable, because nothing
depends on how fast the machine is, nor on where objects lie in memory. Code under it must wait through the loop alone:
no threads, no sockets.
"""

import asyncio
import gc
import itertools
import selectors
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


class Stuck(Exception):
    """Every task waits for something that no timer will bring about."""


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a file, moves the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.jump: Callable[[float], None] = lambda _: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits, and no timer is set")
        if timeout > 0:
            self.jump(timeout)
        return []


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
    """A loop whose `time()` moves only by jumping to the next timer."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._virtual_s = 0.0
        self._numbers = itertools.count()
        super().__init__(selector)
        selector.jump = self._jump
        self.set_task_factory(self._make_task)

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

    def _jump(self, seconds: float) -> None:
        self._virtual_s += seconds


class VirtualClock:
    """A `Clock` of the running virtual loop. `rate` drifts it: 1.01 runs one per cent fast."""

    def __init__(self, *, rate: float = 1.0) -> None:
        self._rate = rate

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time() * self._rate

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.monotonic_s())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)


def run_virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main()` to its end on virtual time, and let nothing of it remain."""
    with virtual_runner() as runner:
        return runner.run(main())


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
