"""Random work and random faults on a simulated cluster, all from one seed.

`python -m tests.simulation.swarm --seed 7` runs one and tells its whole story; `tests.simulation.many` runs many.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import logging
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from leeward.clock import Clock
from leeward.errors import LeewardError
from leeward_agent.storage.port import Pill
from leeward_controller.core import Policy
from leeward_controller.domain.node import NodeCondition
from leeward_controller.failover.model import Isolation, IsolationPolicy
from leeward_controller.housekeeping.give_back import GiveBackPolicy
from leeward_controller.services.instances import Target
from leeward_lab.virtual_time import Stuck, VirtualClock, run_virtually
from tests.simulation.clients import Clients
from tests.simulation.faults import End, Faults
from tests.simulation.invariants import Broken
from tests.simulation.story import ALICE, Story
from tests.simulation.tally import Counting, Tally
from tests.simulation.weather import Climate

CHAOS_S = 120.0
FAULT_EVERY_S = 6.0
WORK_EVERY_S = 2.0
SETTLE_S = 900.0
CALM_S = 20.0
# The share of clusters that keep isolated guests; the others move them.
_KEEPS = 0.6
# How long after a fault the guard may still act upon it: TTL, its own delay, and an agent that has to find its feet.
_AFTERMATH_S = 8.0


@dataclass(slots=True)
class Outcome:
    """What became of one seed. `trace` digests all that happened: the same seed always gives the same."""

    seed: int
    lines: list[str] = field(default_factory=list)
    error: BaseException | None = None
    settled_s: float = 0.0
    simulated_s: float = 0.0
    tally: Tally = field(default_factory=Tally)

    @property
    def trace(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]

    def story(self, *, lines: int = 80) -> str:
        """Why it failed, the end of its log, and how to see it again."""
        assert self.error is not None
        why = "".join(traceback.format_exception(self.error))
        log = "\n".join(self.lines[-lines:])
        return f"{log}\n\n{why}\nseed {self.seed} failed; to replay it: make simulation SEED={self.seed}"


class _Pills(dict[str, Pill]):
    """The poison pills in the shared pool, and when each node last had one."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._withdrawn_s: dict[str, float] = {}

    def pop(self, node: str, *default: Any) -> Any:
        self._withdrawn_s[node] = self._now_s()
        return super().pop(node, *default)

    def within(self, node: str, seconds: float) -> bool:
        """Whether it had one during the last so many seconds."""
        return node in self or self._now_s() - self._withdrawn_s.get(node, float("-inf")) <= seconds


def _isolation(rng: random.Random) -> IsolationPolicy:
    if rng.random() < _KEEPS:
        return IsolationPolicy()
    return IsolationPolicy(Isolation.MOVE, after_s=rng.uniform(5.0, 60.0))


def _give_back(rng: random.Random) -> GiveBackPolicy:
    """Half of all clusters give back, and soon."""
    return GiveBackPolicy(enabled=rng.random() < 0.5, after_s=rng.uniform(1.0, 30.0))


class Swarm:
    """One seed's run."""

    def __init__(self, seed: int) -> None:
        def draw(purpose: str) -> random.Random:
            return random.Random(f"{seed}/{purpose}")

        self._rng = draw("plan")
        nodes, controllers = self._rng.randint(3, 5), self._rng.randint(1, 3)
        names = [f"host-{letter}" for letter in "abcde"[:nodes]] + [f"control-{n}" for n in range(1, controllers + 1)]
        clocks: Mapping[str, Clock] = {name: VirtualClock(rate=self._rng.uniform(0.995, 1.005)) for name in names}
        climate = Climate(draw("weather"), VirtualClock())
        self.story = Story(
            seed=seed,
            nodes=nodes,
            controllers=controllers,
            steps=True,
            clocks=clocks,
            wrap_store=climate.wrap_store,
            agent_hooks=climate.agent_hook,
            repeats=climate.repeats,
            node_memory_mib=self._rng.choice([4608, 8192]),
            policy=Policy(isolation=_isolation(draw("isolation")), give_back=_give_back(draw("give back"))),
        )
        self._pills = _Pills(self.story.clock.monotonic_s)
        self.story.cluster.pool.pills = self._pills
        self.counting = Counting()
        self.story.narrator.listen(self.counting.on_record)
        self._climate = climate
        self._faults = Faults(self.story, climate, draw("faults"))
        self._clients = Clients(self.story, draw("clients"))
        self._number = itertools.count(1)
        self._open: dict[int, tuple[str, End]] = {}
        self._ending: dict[asyncio.Task[None], None] = {}
        self._guard_kills = 0

    async def run(self) -> float:
        """Work and faults, then calm; returns how long it took to settle. Raises Broken, AssertionError."""
        story = self.story
        self._faults.bmcs.draw(sorted(story.cluster.nodes))
        await story.begin(fence=self._faults.bmcs)
        story.begin_counting()
        until_s = story.now_s + CHAOS_S
        working = asyncio.ensure_future(self._work(until_s))
        while story.now_s < until_s:
            await story.clock.sleep(self._rng.expovariate(1 / FAULT_EVERY_S))
            await self._begin_fault()
            self._check()
        await working
        await self._end_all()
        story.tell("all faults have ended")
        ended_s = story.now_s
        await self._settle()
        settled_s = story.now_s - ended_s
        await story.end()
        return settled_s

    async def _work(self, until_s: float) -> None:
        while self.story.now_s < until_s:
            self._clients.draw()
            await self.story.clock.sleep(self._rng.expovariate(1 / WORK_EVERY_S))

    async def _begin_fault(self) -> None:
        begun = await self._faults.draw()
        if begun is None:
            return
        number = next(self._number)
        self.story.tell(f"fault {number}: {begun.story}")
        self.counting.fault(self._faults.drawn)
        self._open[number] = (begun.story, begun.end)
        task = asyncio.ensure_future(self._end_in_time(number, self._duration_s()))
        self._ending[task] = None
        task.add_done_callback(lambda done: self._ending.pop(done, None))

    def _duration_s(self) -> float:
        lo, hi = self._rng.choices([(0.5, 6.0), (6.0, 40.0), (60.0, CHAOS_S)], [5, 5, 1])[0]
        return self._rng.uniform(lo, hi)

    async def _end_in_time(self, number: int, seconds: float) -> None:
        await self.story.clock.sleep(seconds)
        await self._end(number)

    async def _end(self, number: int) -> None:
        told, end = self._open.pop(number)
        await end()
        self.story.tell(f"fault {number} has ended: {told}")

    async def _end_all(self) -> None:
        for task in list(self._ending):
            task.cancel()
        for number in list(self._open):
            await self._end(number)
        self._climate.clear()
        self._faults.bmcs.modes.clear()
        await self._faults.power_on_all()

    async def _settle(self) -> None:
        """Wait, as an operator who switches hosts on and lets them work again, until nothing is open and stays so."""
        story = self.story
        deadline_s, calm_since_s = story.now_s + SETTLE_S, None
        while calm_since_s is None or story.now_s - calm_since_s < CALM_S:
            await story.clock.sleep(1.0)
            self._check()
            open_ends = [*self._open_ends(), *story.unsettled()]
            if not open_ends:
                calm_since_s = calm_since_s or story.now_s
                continue
            calm_since_s = None
            await self._faults.power_on_all()
            await self._uncordon()
            assert story.now_s < deadline_s, f"not settled {SETTLE_S:g} s after all faults ended: " + "; ".join(
                open_ends
            )

    def _open_ends(self) -> list[str]:
        ends = [f"{o.type} {o.instance} is at {o.step} ({o.phase})" for o in self.story.running_operations()]
        for node in sorted(self.story.cluster.nodes):
            condition = self.story.condition(node)
            if condition is not NodeCondition.READY:
                ends.append(f"{node} is {condition}")
        return ends

    async def _uncordon(self) -> None:
        for node in sorted(self.story.cluster.nodes):
            if self.story.condition(node) is NodeCondition.QUARANTINED:
                with contextlib.suppress(LeewardError):  # It is tried again at the next look.
                    await self.story.services().nodes.uncordon(Target(f"nodes/{node}"), ALICE)

    def _check(self) -> None:
        self.story.check()
        kills = [
            (at_s, node.name, uid) for node in self.story.cluster.nodes.values() for at_s, uid in node.killed_by_guard
        ]
        if len(kills) == self._guard_kills:
            return
        self.counting.total("guests killed by a guard", len(kills) - self._guard_kills)
        for at_s, node, uid in kills[self._guard_kills :]:
            self._check_guard(node, uid, self.story.now_s - at_s)
        self._guard_kills = len(kills)

    def _check_guard(self, node: str, uid: str, ago_s: float) -> None:
        """A guard kills only where the agent was gone, both heartbeats were disturbed, or a pill was left."""
        within_s = _AFTERMATH_S + ago_s
        touched = self._faults.touched
        both = touched.within(node, "store", within_s) and touched.within(node, "pool", within_s)
        if not both and not touched.within(node, "agent", within_s) and not self._pills.within(node, within_s):
            raise Broken(f"the guard of {node} killed {uid}, though a heartbeat of it was undisturbed")


def run_seed(seed: int) -> Outcome:
    """Run one seed to its end."""
    outcome = Outcome(seed)

    async def main() -> None:
        swarm = Swarm(seed)
        outcome.lines, outcome.tally = swarm.story.lines, swarm.counting.tally
        try:
            outcome.settled_s = await swarm.run()
        except Exception as error:  # noqa: BLE001  Whatever it is, the seed has failed by it.
            outcome.error = error
        outcome.simulated_s = swarm.story.now_s
        swarm.counting.on_log(outcome.lines)

    try:
        run_virtually(main)
    except Stuck as error:
        # What is left of a broken run may be unable to end.
        outcome.error = outcome.error or error
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.swarm", description=__doc__)
    parser.add_argument("--seed", type=int, required=True, metavar="K", help="run this one, and print its log")
    options = parser.parse_args()
    quiet()
    outcome = run_seed(options.seed)
    print("\n".join(outcome.lines))
    if outcome.error is not None:
        sys.exit(outcome.story(lines=0))
    print(f"trace {outcome.trace}, settled after {outcome.settled_s:.1f} s")


def quiet() -> None:
    """The parts' own logs, thousands of lines of them, are not shown."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    main()
