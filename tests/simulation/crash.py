"""Killing a controller at one exact point of its dealings with the world."""

import asyncio
from collections.abc import Awaitable, Callable

from leeward_lab.simulated.cluster import SimulatedController
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import Story

Act = Callable[[Story], Awaitable[None]]


class CrashPoint:
    """Counts a controller's calls to store and agents once armed, and kills it at number `at` (0: never).

    Calls are counted before they leave and after they came back, so the controller dies both between deciding and
    acting and between acting and knowing.
    """

    def __init__(self, at: int) -> None:
        self.count = 0
        self.reached = ""
        self._at = at
        self._victim: SimulatedController | None = None
        self._killing: asyncio.Task[None] | None = None

    def arm(self, victim: SimulatedController) -> None:
        """Count from now on."""
        self._victim = victim

    async def on_store(self, method: str) -> None:
        """The hook around store calls."""
        if method.endswith(("transact", "before get")):
            await self._pass(f"store {method}")

    async def on_agent(self, node: str, method: str) -> None:
        """The hook around agent calls."""
        if not method.endswith(("watch_guests", "observe_slots", "list_guests")):
            await self._pass(f"{node} {method}")

    async def _pass(self, what: str) -> None:
        if self._victim is None:
            return
        self.count += 1
        if self.count == self._at:
            self.reached = what
            self._killing = asyncio.ensure_future(self._victim.kill())
            await asyncio.Event().wait()


def run_with_crash(at: int, *, prepare: Act, act: Act, check: Act, seed: int = 0) -> CrashPoint:
    """Prepare a cluster, then act while its first controller dies at point `at`, then check what came of it."""
    point = CrashPoint(at)

    async def main() -> None:
        story = Story(seed=seed)
        first = await story.begin(store_hook=point.on_store, agent_hook=point.on_agent)
        await prepare(story)
        point.arm(first)
        await act(story)
        await check(story)
        story.check_settled()
        await story.end()

    run_virtually(main)
    return point


def crash_everywhere(*, prepare: Act, act: Act, check: Act) -> list[str]:
    """Run once undisturbed, then once for each point there was; returns the points reached, in words."""
    points = run_with_crash(0, prepare=prepare, act=act, check=check).count
    assert points > 0
    reached = []
    for at in range(1, points + 1):
        try:
            reached.append(run_with_crash(at, prepare=prepare, act=act, check=check).reached)
        except BaseException as error:
            error.add_note(f"the controller was killed at point {at} of {points}")
            raise
    return [what for what in reached if what]
