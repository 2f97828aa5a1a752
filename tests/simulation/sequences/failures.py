"""What goes wrong in a sequence: each failure begins at once, and ends by itself or when all are ended."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from leeward.agent.types import GuestState, MigrationPhase
from leeward.errors import AgentIndefinite, AgentUnavailable
from leeward.store.port import Store
from leeward_agent.storage.memory import PoolFault
from leeward_lab.simulated.cluster import SimulatedController
from leeward_lab.simulated.link import CallHook
from leeward_lab.simulated.network import CONTROLLERS
from leeward_lab.simulated.stores import LinkedStore
from tests.simulation.sequences.coverage import Coverage
from tests.simulation.story import Story

End = Callable[[], Awaitable[None]]

_LOOKS = ("watch_guests", "observe_slots", "list_guests", "describe_node", "take_inventory")


@dataclass(slots=True)
class _Failing:
    """Calls to an agent that fail: `skip` are let through first, then `count` fail, before or after it acts."""

    before: bool
    skip: int
    count: int


class Failures:
    """Makes things go wrong in one cluster. `wrap_store` and `agent_hooks` belong into its making."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._story: Story | None = None
        self._failing: dict[str, list[_Failing]] = {}
        self._crashing: dict[str, int] = {}  # By replica: how many more of its calls to go.
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[str, End]] = {}
        self._timers: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, story: Story) -> None:
        """The cluster is there."""
        self._story = story

    @property
    def story(self) -> Story:
        assert self._story is not None
        return self._story

    # What the cluster is made with.

    def wrap_store(self, store: Store, name: str) -> Store:
        """The store as a part has it: a replica may die at any of its calls."""

        async def linked() -> None:
            return

        async def hook(method: str) -> None:
            if method.endswith(("transact", "before get")):
                await self._pass(name, f"store {method}")

        return LinkedStore(store, reaches=lambda: True, linked=linked, delay=linked, hook=hook)

    def agent_hooks(self, controller: str) -> CallHook:
        """The hook around a replica's calls to agents."""

        async def hook(node: str, method: str) -> None:
            when, _, call = method.partition(" ")
            if call in _LOOKS:
                return
            await self._pass(controller, f"{node} {method}")
            self._fail(node, when, call)

        return hook

    async def _pass(self, controller: str, what: str) -> None:
        if controller not in self._crashing:
            return
        self._crashing[controller] -= 1
        if self._crashing[controller] > 0:
            return
        del self._crashing[controller]
        self.story.tell(f"failure: {controller} dies at {what}")
        task = asyncio.ensure_future(self.story.cluster.controllers[controller].kill())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.Event().wait()

    def _fail(self, node: str, when: str, call: str) -> None:
        for failing in self._failing.get(node, []):
            if (when == "before") is not failing.before:
                continue
            if failing.skip > 0:
                failing.skip -= 1
            elif failing.count > 0:
                failing.count -= 1
                self.story.tell(f"failure: {call} of {node} fails, {when} it acts")
                if failing.before:
                    raise AgentUnavailable(f"nodes/{node}: the call was lost on its way")
                raise AgentIndefinite(f"nodes/{node}: the answer was lost")

    # The failures.

    def fail_calls(self, node: str, *, before: bool, skip: int, count: int) -> None:
        """Some of the calls that come to an agent fail."""
        self._count(f"calls lost {'before' if before else 'after'} the agent acts", f"calls to {node} will fail")
        self._failing.setdefault(node, []).append(_Failing(before, skip, count))

    async def restart_agent(self, name: str, *, down_s: float) -> None:
        """SIGKILL of an agent, and a new one later; guests run on."""
        node = self.story.cluster.nodes[name]
        if node.agent is None:
            return
        boot_id = node.boot_id

        async def end() -> None:
            if node.agent is None and node.host.powered and node.boot_id == boot_id:
                await node.start_agent()

        await node.kill_agent()
        self._begun("agents killed", f"the agent of {name} is killed", end, down_s)

    def crash_controller(self, index: int, *, at_call: int, down_s: float) -> None:
        """A replica dies at one of its next calls to store or agents, and a new one starts later."""
        controllers = self.story.cluster.controllers
        name = sorted(controllers)[index % len(controllers)]
        controller = controllers[name]
        if controller.core is None or name in self._crashing:
            return
        self._crashing[name] = at_call

        async def end() -> None:
            self._crashing.pop(name, None)
            if controller.core is None:
                controller.start()

        self._begun("replicas killed", f"{name} dies at its call {at_call} from now", end, down_s)

    async def cut_power(self, name: str, *, down_s: float) -> None:
        """A host goes dark, and comes back."""
        node = self.story.cluster.nodes[name]
        if not node.host.powered:
            return

        async def end() -> None:
            if not node.host.powered:
                await self.story.power_on(name)

        await node.power_off()
        self._begun("power cuts", f"power of {name} is cut", end, down_s)

    def cut_off(self, name: str, *, other: str, for_s: float) -> None:
        """A host loses the controllers, or, with `other`, that host."""
        network, far = self.story.cluster.network, other or CONTROLLERS
        network.cut(name, far)

        async def end() -> None:
            network.heal(name, far)

        self._begun("links cut", f"{name} and {far} lose each other", end, for_s)

    def lose_pool(self, name: str, pool_id: str, *, hangs: bool, for_s: float) -> None:
        """A host cannot reach one of its pools."""
        host = self.story.cluster.nodes[name].host
        faults = self.story.cluster.pools[pool_id].faults
        faults[name] = PoolFault.HANGING if hangs else PoolFault.FAILING
        host.lose_storage(pool_id)

        async def end() -> None:
            faults.pop(name, None)
            host.restore_storage(pool_id)

        self._begun("pools lost", f"{name} loses pool {pool_id}", end, for_s)

    def refuse(self, name: str, what: str, *, for_s: float) -> None:
        """A host's hypervisor fails at one kind of thing."""
        host = self.story.cluster.nodes[name].host
        match what:
            case "start":
                host.start_error = "out of luck"
            case "job":
                host.job_error = "out of luck"
            case "switch":
                host.loses_switch_answer = True
            case _:
                host.migration_errors[MigrationPhase.COPYING] = "out of luck"

        async def end() -> None:
            host.start_error = host.job_error = ""
            host.loses_switch_answer = False
            host.migration_errors.clear()

        self._begun(f"hypervisor failures ({what})", f"the hypervisor of {name} fails at {what}", end, for_s)

    def end_guest(self, index: int, *, by_itself: bool) -> None:
        """A guest's process dies, or the guest shuts itself down."""
        running = [
            (name, uid)
            for name, node in sorted(self.story.cluster.nodes.items())
            for uid, guest in sorted(node.host.guests.items())
            if guest.state is GuestState.RUNNING
        ]
        if not running:
            return
        name, uid = running[index % len(running)]
        host = self.story.cluster.nodes[name].host
        if by_itself:
            self._count("guests shut down", f"{uid} shuts itself down on {name}")
            host.guest_power_off(uid)
        else:
            self._count("guests crashed", f"{uid} crashes on {name}")
            host.guest_crash(uid)

    async def end_all(self) -> None:
        """All is well from now on."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._failing.clear()
        self._crashing.clear()
        for number in list(self._open):
            await self._end(number)
        for controller in self.story.cluster.controllers.values():
            self._start(controller)

    def _start(self, controller: SimulatedController) -> None:
        if controller.core is None:
            controller.start()

    def _count(self, what: str, told: str) -> None:
        self._coverage.failures[what] += 1
        self.story.tell(f"failure: {told}")

    def _begun(self, what: str, told: str, end: End, for_s: float) -> None:
        self._count(what, f"{told}, for {for_s:g} s")
        number = next(self._numbers)
        self._open[number] = (told, end)
        self._timers[number] = asyncio.ensure_future(self._end_later(number, for_s))

    async def _end_later(self, number: int, seconds: float) -> None:
        await self.story.clock.sleep(seconds)
        self._timers.pop(number, None)
        await self._end(number)

    async def _end(self, number: int) -> None:
        if number in self._open:
            told, end = self._open.pop(number)
            await end()
            self.story.tell(f"failure over: {told}")
