"""An event loop on which time is only a number.

Waiting costs nothing: when every task waits, the clock jumps to the next timer. Runs are repeatable, because nothing
depends on how fast the machine is. Code under it must wait through the loop alone: no threads, no sockets.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
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


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose `time()` moves only by jumping to the next timer."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._virtual_s = 0.0
        super().__init__(selector)
        selector.jump = self._jump

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
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())
