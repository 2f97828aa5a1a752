"""Plays a scenario: a directory's `cluster.toml` and `commands`, to a log that is the same each time."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leeward.clock import Clock
from leeward_controller.core import Policy
from leeward_controller.failover.model import Isolation, IsolationPolicy
from leeward_controller.housekeeping.give_back import GiveBackPolicy
from leeward_controller.ports import FenceOutcome
from leeward_lab.virtual_time import run_virtually
from tests.scenarios.actions import Actions
from tests.scenarios.script import Line, find_verb, read_script
from tests.simulation.story import Story


@dataclass(frozen=True, slots=True)
class Initial:
    """What is there when the scenario begins."""

    hosts: int = 3
    controllers: int = 2
    host_memory_mib: int = 16384
    instances: dict[str, str] = field(default_factory=dict)
    fence: dict[str, float | str] = field(default_factory=dict)
    move_isolated_after_s: float = 0.0
    give_back_after_s: float = 0.0

    @property
    def policy(self) -> Policy:
        """The cluster's: whether isolated guests are kept or moved after a while, and whether nodes get guests back."""
        isolation = IsolationPolicy()
        if self.move_isolated_after_s:
            isolation = IsolationPolicy(Isolation.MOVE, after_s=self.move_isolated_after_s)
        give_back = GiveBackPolicy(enabled=bool(self.give_back_after_s), after_s=self.give_back_after_s)
        return Policy(isolation=isolation, give_back=give_back)

    @classmethod
    def read(cls, path: Path) -> "Initial":
        """From a `cluster.toml`. Raises TypeError for a key that is not known."""
        fields: dict[str, Any] = tomllib.loads(path.read_text())
        return cls(**fields)


class ScenarioFence:
    """BMCs that cut the power of simulated hosts after a while; with a negative time they do not answer.

    One with a text for its time refuses with it, and one that "lies" does nothing and says that it did.
    """

    def __init__(self, devices: dict[str, float | str], story: Story, clock: Clock) -> None:
        self._devices = devices
        self._story = story
        self._clock = clock

    def covers(self, node: str) -> bool:
        return node in self._devices

    async def power_off(self, node: str) -> FenceOutcome:
        takes_s = self._devices[node]
        self._story.tell(f"{node}: its BMC is asked to cut the power")
        if isinstance(takes_s, str):
            return (
                FenceOutcome(True, "the BMC says that it is off") if takes_s == "lies" else FenceOutcome(False, takes_s)
            )
        await self._clock.sleep(abs(takes_s))
        if takes_s < 0:
            return FenceOutcome(False, f"no answer within {-takes_s:g} s")
        host = self._story.cluster.nodes[node]
        if host.host.powered:
            await host.power_off()
        return FenceOutcome(True, "the BMC says that the power is off, twice")


def play(directory: Path) -> str:
    """Run a scenario to its end; its log. Raises AssertionError (an expectation failed), BadScript, Broken."""
    initial = Initial.read(directory / "cluster.toml")
    lines = read_script((directory / "commands").read_text())
    log: list[str] = []
    run_virtually(lambda: _play(initial, lines, log))
    return "".join(f"{line}\n" for line in log)


async def _play(initial: Initial, lines: list[Line], log: list[str]) -> None:
    # Tenths of seconds: a store call more or less, of a millisecond each, is no other story.
    story = Story(
        nodes=initial.hosts,
        controllers=initial.controllers,
        decimals=1,
        node_memory_mib=initial.host_memory_mib,
        policy=initial.policy,
    )
    fence = ScenarioFence(initial.fence, story, story.clock)
    await story.begin(fence=fence)
    for name, host in initial.instances.items():
        await story.launched(name, node=host)
    story.begin_counting()
    actions = Actions(story, fence)
    for line in lines:
        act, arguments = find_verb(actions, line)
        if line.at_s is not None:
            await story.until_time(line.at_s)
        story.tell(f"> {line.words}")
        try:
            await act(**arguments)
        except AssertionError as error:
            error.add_note(f"at line {line.number} of commands: {line.words}")
            raise
    story.check()
    log.extend(story.lines)
    await story.end()
