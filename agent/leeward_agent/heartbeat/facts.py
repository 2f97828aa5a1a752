"""What the heartbeats carry, kept at hand: a beat must not wait for a hypervisor or a pool that hangs."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from leeward.agent.types import NodeReport
from leeward.clock import Clock
from leeward.errors import LeewardError

_log = structlog.get_logger(__name__)


class NodeFacts:
    """The latest report of the node and the guests it runs, asked anew every `period_s`."""

    def __init__(
        self,
        clock: Clock,
        *,
        report: Callable[[], Awaitable[NodeReport]],
        guests: Callable[[], Awaitable[tuple[str, ...]]],
        on_first: Callable[[], None],
        period_s: float = 2.0,
        bound_s: float = 10.0,
    ) -> None:
        """`on_first` is called when the first report is there."""
        self._clock = clock
        self._ask_report = report
        self._ask_guests = guests
        self._on_first = on_first
        self._period_s = period_s
        self._bound_s = bound_s
        self._trouble = False
        self.report: NodeReport | None = None
        self.guests: tuple[str, ...] = ()

    async def run(self) -> None:
        """Keep them fresh until cancelled. What cannot be asked stays as it was."""
        while True:
            try:
                async with asyncio.timeout(self._bound_s):
                    await self._refresh()
                self._trouble = False
            except (LeewardError, TimeoutError) as error:
                if not self._trouble:
                    _log.warning("the node's report cannot be made", why=str(error) or "it takes too long")
                self._trouble = True
            await self._clock.sleep(self._period_s)

    async def _refresh(self) -> None:
        first = self.report is None
        self.report = await self._ask_report()
        if first:
            self._on_first()
        self.guests = await self._ask_guests()
