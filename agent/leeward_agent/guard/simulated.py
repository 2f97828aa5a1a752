"""A guard on virtual time: the simulated twin of the process, with the same rules."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from leeward.clock import Clock
from leeward.errors import FailedPrecondition, Unavailable
from leeward_agent.guard.port import GuardStatus, Vouch
from leeward_agent.guard.protocol import KILL_BOUND_S, Arm
from leeward_agent.guard.state import ArmState


class SimulatedGuard:
    """A `GuardClient` and the guard behind it. `run` is the guard's life on its host: it outlives agents.

    `kill` is called with the shared pools' roots when the deadline passes, and again each `sweep_s` until it is vouched
    for again; it ends every guest with a disk below them. `runs` answers whether such a guest is there. While
    `reachable` is False the agent gets no answer, and the guard goes on with what it knows.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        kill: Callable[[tuple[Path, ...]], None],
        runs: Callable[[tuple[Path, ...]], bool] = lambda _: False,
        delay_s: float = 0.0,
        sweep_s: float = 0.1,
    ) -> None:
        self._clock = clock
        self._kill = kill
        self._runs = runs
        self._delay_s = delay_s
        self._sweep_s = sweep_s
        self._state = ArmState()
        self._changed = asyncio.Event()
        self._has_swept = False
        self.reachable = True

    async def run(self) -> None:
        """Watch until cancelled, which is the host losing power."""
        while True:
            self._changed.clear()
            now_s = self._clock.monotonic_s()
            if not self._state.armed:
                await self._changed.wait()
                continue
            if self._state.expired(now_s, delay_s=self._delay_s):
                self._kill(self._roots())
                self._has_swept = True
                await self._clock.sleep(self._sweep_s)
            else:
                await self._clock.sleep(self._state.deadline_s + self._delay_s - now_s)

    async def arm(self, vouch: Vouch) -> GuardStatus:
        self._check_reachable()
        roots = tuple(str(root) for root in vouch.roots)
        arm = Arm(since_s=vouch.since_s, deadline_s=vouch.deadline_s, ttl_s=vouch.ttl_s, roots=roots)
        if self._state.lapsed_before(arm, delay_s=self._delay_s):
            self._kill(self._roots())
        self._state = self._state.vouched(arm)
        self._has_swept = False
        self._changed.set()
        return self._status()

    async def disarm(self) -> GuardStatus:
        self._check_reachable()
        if self._state.armed and self._runs(self._roots()):
            raise FailedPrecondition("the guard stays armed: guests run on shared pools", reason="GUESTS_RUNNING")
        self._state = ArmState()
        return self._status()

    async def status(self) -> GuardStatus:
        self._check_reachable()
        return self._status()

    async def close(self) -> None:
        return

    def _roots(self) -> tuple[Path, ...]:
        return tuple(map(Path, self._state.roots))

    def _check_reachable(self) -> None:
        if not self.reachable:
            raise Unavailable("the simulated guard does not answer", reason="GUARD_UNAVAILABLE")

    def _status(self) -> GuardStatus:
        expired = self._state.expired(self._clock.monotonic_s(), delay_s=self._delay_s)
        return GuardStatus(
            armed=self._state.armed,
            expired=expired,
            deadline_s=self._state.deadline_s,
            ttl_s=self._state.ttl_s,
            delay_s=self._delay_s + KILL_BOUND_S,
            clear=expired and self._has_swept and not self._runs(self._roots()),
        )
