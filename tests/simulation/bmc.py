"""Fence devices of a swarm's hosts: they cut the power, or say that they cannot, or are late, or deny what they did.

None confirms what it has not done. Nothing survives that one: it proves an end that was none, and the instances run
twice until a guard or an operator ends it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from enum import StrEnum

from leeward.clock import Clock
from leeward_controller.ports import FenceOutcome


class Bmc(StrEnum):
    """How a host's device behaves."""

    NONE = "NONE"  # There is none.
    WORKS = "WORKS"  # The power is off within a second, and it says so.
    SLOW = "SLOW"  # The same, after up to half a minute.
    FAILS = "FAILS"  # It does nothing, and says so.
    DENIES = "DENIES"  # The power goes off, and it says that it does not know.


class Bmcs:
    """A `Fence` over simulated hosts; `cut(node)` takes a host's power at once."""

    def __init__(self, clock: Clock, rng: random.Random, *, cut: Callable[[str], Awaitable[None]]) -> None:
        self.modes: dict[str, Bmc] = {}
        self._clock = clock
        self._rng = rng
        self._cut = cut

    def draw(self, nodes: Iterable[str]) -> None:
        """Give hosts their devices; half of them have none."""
        for node in nodes:
            self.modes[node] = self._rng.choice([Bmc.NONE] * 4 + [Bmc.WORKS, Bmc.SLOW, Bmc.FAILS, Bmc.DENIES])

    def covers(self, node: str) -> bool:
        return self.modes.get(node, Bmc.NONE) is not Bmc.NONE

    async def power_off(self, node: str) -> FenceOutcome:
        # In no caller's context: the device goes on when the controller that asked it is stopped.
        working = asyncio.get_running_loop().create_task(self._work(node), context=Context())
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            # Who asked is gone, and with it the program that talked to the device.
            working.cancel()
            raise

    async def _work(self, node: str) -> FenceOutcome:
        mode = self.modes.get(node, Bmc.NONE)
        slow = mode is Bmc.SLOW
        await self._clock.sleep(self._rng.uniform(2.0, 30.0) if slow else self._rng.uniform(0.1, 1.0))
        if mode in (Bmc.NONE, Bmc.FAILS):
            return FenceOutcome(False, "the device does not answer")
        await self._cut(node)
        confirmed = mode is not Bmc.DENIES
        return FenceOutcome(confirmed, "the device says off" if confirmed else "the device does not tell")
