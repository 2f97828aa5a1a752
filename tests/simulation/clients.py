"""What users ask of a swarm's cluster, at random."""

import itertools
import random

from leeward.agent.types import RebootMode
from leeward.errors import LeewardError, StoreIndefinite, StoreUnavailable
from leeward_controller.domain.operation import (
    Arguments,
    DeleteArguments,
    LiveMigrateArguments,
    OperationType,
    RebootArguments,
    StartArguments,
    StopArguments,
)
from leeward_controller.operations.submit import Requester
from leeward_controller.records import OPERATIONS
from leeward_lab.simulated.cluster import SimulatedController
from tests.simulation.story import ALICE, Story

_KINDS = {"create": 6, "start": 3, "stop": 2, "reboot": 3, "migrate": 6, "delete": 3, "cancel": 2}
_NAMES = 9


class Clients:
    """Draws requests and sends each to a replica that is up; what is refused is told, and harms nobody."""

    def __init__(self, story: Story, rng: random.Random) -> None:
        self._story = story
        self._rng = rng
        self._number = itertools.count(1)

    def draw(self) -> None:
        """Send one request."""
        up = [c for _, c in sorted(self._story.cluster.controllers.items()) if c.core is not None]
        kind = self._rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        name = f"web-{self._rng.randint(1, _NAMES)}"
        node = self._rng.choice(["", "", *sorted(self._story.cluster.nodes)])
        number = self._rng.random()
        if up:
            controller = self._rng.choice(up)
            controller.serve(self._request(controller, kind, name, node, number))

    async def _request(self, through: SimulatedController, kind: str, name: str, node: str, number: float) -> None:
        self._story.tell(f"{through.name} is asked to {kind} {name} {node}".rstrip())
        requester = Requester(principal=f"client:{next(self._number)}")
        try:
            await self._send(through, kind, name, node, number, requester)
        except (StoreUnavailable, StoreIndefinite) as error:
            # The client has to look for itself what has become of it.
            self._story.tell(f"{through.name} cannot say whether it will {kind} {name}: {error.specific_reason}")
        except LeewardError as error:
            self._story.tell(f"{through.name} does not {kind} {name}: {error.specific_reason}")
            done = any(each.requested_by == requester.principal for each in self._story.all_of(OPERATIONS))
            self._story.invariants.require(not done, f"{through.name} refused to {kind} {name}, and does it")

    async def _send(
        self, through: SimulatedController, kind: str, name: str, node: str, number: float, requester: Requester
    ) -> None:
        if kind == "create":
            memory_mib = 512 if number < 0.5 else 2048
            await self._story.create(name, node=node, memory_mib=memory_mib, through=through, requester=requester)
        elif kind == "cancel":
            await self._cancel(through, number)
        else:
            wanted, arguments = _operation(kind, node, number)
            await self._story.submit(name, wanted, arguments, through=through, requester=requester)

    async def _cancel(self, through: SimulatedController, number: float) -> None:
        running = sorted(self._story.running_operations(), key=lambda o: (o.instance, o.type, o.create_time))
        if running and through.core is not None:
            chosen = running[int(number * len(running))]
            await through.core.submitter.cancel(chosen.id, ALICE)


def _operation(kind: str, node: str, number: float) -> tuple[OperationType, Arguments]:
    mode = RebootMode.SOFT if number < 0.5 else RebootMode.HARD
    table: dict[str, tuple[OperationType, Arguments]] = {
        "start": (OperationType.START, StartArguments()),
        "stop": (OperationType.STOP, StopArguments(grace_period_s=5.0 if number < 0.7 else 0.0)),
        "reboot": (OperationType.REBOOT, RebootArguments(mode=mode, timeout_s=5.0)),
        "migrate": (OperationType.LIVE_MIGRATE, LiveMigrateArguments(node=node, timeout_s=120.0)),
        "delete": (OperationType.DELETE, DeleteArguments()),
    }
    return table[kind]
