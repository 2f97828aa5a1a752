"""The loop that runs all duties: each when it is due by the clock or a record that concerns it has changed."""

import asyncio
from collections.abc import Sequence

import structlog

from leeward.clock import await_event
from leeward.errors import LeewardError
from leeward_controller.housekeeping.duty import Duty
from leeward_controller.operations.context import Surroundings

log = structlog.get_logger()

_LEAST_PAUSE_S = 0.05
_AFTER_ERROR_S = 1.0
# Wall time, by which duties go, may be set; so nobody sleeps for longer than this on what it said.
_LONGEST_PAUSE_S = 60.0


class Housekeeping:
    """Runs the duties side by side, during one term of leadership: one that takes long holds up no other."""

    def __init__(self, *, surroundings: Surroundings, duties: Sequence[Duty]) -> None:
        self._view = surroundings.view
        self._clock = surroundings.clock
        self._duties = duties

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for duty in self._duties:
                group.create_task(self._keep(duty))

    async def _keep(self, duty: Duty) -> None:
        woken = asyncio.Event()

        def notice(key: str) -> None:
            if duty.concerns(key):
                woken.set()

        stop_listening = self._view.listen(notice)
        try:
            while True:
                await self._view.wait_for(lambda: self._view.synced, timeout_s=_LONGEST_PAUSE_S)
                woken.clear()
                try:
                    pause_s = await duty.work()
                except LeewardError as error:
                    log.info("housekeeping.put_off", duty=duty.name, why=error.message)
                    await self._clock.sleep(_AFTER_ERROR_S)
                    continue
                # When many records change at once, one look takes them all in.
                await self._clock.sleep(_LEAST_PAUSE_S)
                left_s = min(pause_s, _LONGEST_PAUSE_S) - _LEAST_PAUSE_S
                await await_event(woken, clock=self._clock, within_s=max(0.0, left_s))
        finally:
            stop_listening()
