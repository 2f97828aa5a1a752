"""The state machine: every operation is a rule, and so is every failure; what must hold is checked at the end."""

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from leeward_controller.domain.operation import Operation, OperationType
from leeward_controller.domain.transitions import TABLE, Action, Immediate
from leeward_lab.virtual_time import virtual_runner
from tests.simulation.sequences.coverage import Coverage
from tests.simulation.sequences.model import Asking, refusal_of
from tests.simulation.sequences.requests import PROJECT
from tests.simulation.sequences.world import World

_O = OperationType
TO_ITS_END = -1.0
"""To wait until the operation has ended."""

SWEEPS_EVERY = 40
"""Of so many sequences one waits for the leader's own sweep of image files, which comes every ten minutes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How something is asked for: `slot` picks the instance, `number` decides the arguments, `wait_s` what follows."""

    slot: int
    number: int
    wait_s: float
    through: int
    admin: bool


_SLOTS = st.integers(0, 3)
_NUMBERS = st.integers(0, 7**6)
_NODES = st.integers(0, 3)
_WAITS = st.sampled_from([TO_ITS_END, TO_ITS_END, TO_ITS_END, TO_ITS_END, 0.0, 0.02, 0.06, 0.15, 0.4, 1.0, 3.0])
_SPANS = st.sampled_from([0.5, 3.0, 8.0, 20.0, 60.0])
_ASKED = st.builds(Asked, _SLOTS, _NUMBERS, _WAITS, st.integers(0, 1), st.booleans())
_NAMES = tuple(f"{PROJECT}/instances/web-{number}" for number in range(1, 5))


def _is_there(machine: Any) -> bool:
    """Whether there is a cluster."""
    return machine.is_there


def _can(wanted: Action) -> Callable[[Any], bool]:
    """Whether there is an instance of which the table has this accepted from an admin."""
    return lambda machine: bool(machine.fitting(wanted))


class Sequences(RuleBasedStateMachine):
    """One sequence on one cluster. `coverage` counts over all of them, and `failed` is told what breaks one."""

    coverage: ClassVar[Coverage] = Coverage()
    failed: ClassVar[Callable[[Exception], None]] = staticmethod(lambda _: None)

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(virtual_runner())
        self._world: World | None = None
        self._broken = False
        self._sweeps = False

    @property
    def is_there(self) -> bool:
        """Whether there is a cluster."""
        return self._world is not None

    @property
    def world(self) -> World:
        assert self._world is not None
        return self._world

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self._runner.run(work)
        except BaseException as error:
            if not self._broken:
                self._broken = True
                if self._world is not None and isinstance(error, Exception):
                    self.failed(error)
                    error.add_note("the end of its story:\n" + self._world.story.text())
            raise

    @initialize(
        seed=st.integers(0, 2**16), nodes=st.sampled_from([3, 4]), launched=st.lists(_NUMBERS, min_size=1, max_size=3)
    )
    def begin(self, seed: int, nodes: int, launched: list[int]) -> None:
        """A cluster with a few instances on it; none at all for the simplest sequence, which tells nothing."""
        if not seed:
            return
        self._sweeps = seed % SWEEPS_EVERY == 1
        self._world = World(seed=seed, nodes=nodes, coverage=self.coverage)
        self._run(self.world.begin())
        for name, number in zip(_NAMES, launched, strict=False):
            self._ask_of(_O.CREATE, name, Asked(0, number, TO_ITS_END, 0, admin=True))

    def teardown(self) -> None:
        """Everything ends, and nothing may be left."""
        try:
            if self._world is not None and not self._broken:
                self._run(self.world.settle(sweeps=self._sweeps))
                self._run(self.world.end())
                self.coverage.sequences += 1
        finally:
            self._stack.close()

    def fitting(self, wanted: Action) -> list[str]:
        """The names of the instances of which the table has this accepted now."""
        if self._world is None:
            return []
        asking = Asking(wanted, "client:ops", admin=True)
        return [name for name in _NAMES if refusal_of(self._world.history.version(name), asking) is None]

    def _ask(self, wanted: Action, asked: Asked) -> None:
        """Ask it of one of the instances that the table allows it for."""
        names = self.fitting(wanted)
        if names:
            self._ask_of(wanted, names[asked.slot % len(names)], asked)

    def _ask_of(self, wanted: Action, name: str, asked: Asked) -> None:
        operation = self._run(
            self.world.ask(wanted, name, through=asked.through, number=asked.number, admin=asked.admin)
        )
        if isinstance(operation, Operation):
            self._wait(operation, asked.wait_s)

    def _wait(self, operation: Operation, wait_s: float) -> None:
        if wait_s == TO_ITS_END:
            self._run(self.world.until_ended(operation))
        else:
            self._run(self.world.pass_time(wait_s))

    def _node(self, index: int) -> str:
        return self.world.nodes[index % len(self.world.nodes)]

    # Operations.

    def _has_room(self) -> bool:
        return self._world is not None and any(self._world.instance(name) is None for name in _NAMES)

    @rule(asked=_ASKED)
    @precondition(_has_room)
    def create(self, asked: Asked) -> None:
        free = [name for name in _NAMES if self.world.instance(name) is None]
        self._ask_of(_O.CREATE, free[0], asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.START))
    def start(self, asked: Asked) -> None:
        self._ask(_O.START, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.STOP))
    def stop(self, asked: Asked) -> None:
        self._ask(_O.STOP, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.REBOOT))
    def reboot(self, asked: Asked) -> None:
        self._ask(_O.REBOOT, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.PAUSE))
    def pause(self, asked: Asked) -> None:
        self._ask(_O.PAUSE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.UNPAUSE))
    def unpause(self, asked: Asked) -> None:
        self._ask(_O.UNPAUSE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.SUSPEND))
    def suspend(self, asked: Asked) -> None:
        self._ask(_O.SUSPEND, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.RESUME))
    def resume(self, asked: Asked) -> None:
        self._ask(_O.RESUME, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.RESIZE))
    def resize(self, asked: Asked) -> None:
        self._ask(_O.RESIZE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.CONFIRM_RESIZE))
    def confirm_resize(self, asked: Asked) -> None:
        self._ask(_O.CONFIRM_RESIZE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.REVERT_RESIZE))
    def revert_resize(self, asked: Asked) -> None:
        self._ask(_O.REVERT_RESIZE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.SNAPSHOT))
    def snapshot(self, asked: Asked) -> None:
        self._ask(_O.SNAPSHOT, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.MIGRATE))
    def migrate(self, asked: Asked) -> None:
        self._ask(_O.MIGRATE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.LIVE_MIGRATE))
    def live_migrate(self, asked: Asked) -> None:
        self._ask(_O.LIVE_MIGRATE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.SHELVE))
    def shelve(self, asked: Asked) -> None:
        self._ask(_O.SHELVE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.OFFLOAD))
    def offload(self, asked: Asked) -> None:
        self._ask(_O.OFFLOAD, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.UNSHELVE))
    def unshelve(self, asked: Asked) -> None:
        self._ask(_O.UNSHELVE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.RESCUE))
    def rescue(self, asked: Asked) -> None:
        self._ask(_O.RESCUE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.UNRESCUE))
    def unrescue(self, asked: Asked) -> None:
        self._ask(_O.UNRESCUE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.REBUILD))
    def rebuild(self, asked: Asked) -> None:
        self._ask(_O.REBUILD, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.DELETE))
    def delete(self, asked: Asked) -> None:
        """Also of what has an operation running."""
        self._ask(_O.DELETE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.UNDELETE))
    def undelete(self, asked: Asked) -> None:
        self._ask(_O.UNDELETE, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.CRASH_DUMP))
    def crash_dump(self, asked: Asked) -> None:
        self._ask(_O.CRASH_DUMP, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.RECOVER))
    def recover(self, asked: Asked) -> None:
        self._ask(_O.RECOVER, asked)

    @rule(asked=_ASKED)
    @precondition(_can(_O.EVACUATE))
    def evacuate(self, asked: Asked) -> None:
        """By hand; refused while there is no proof."""
        self._ask(_O.EVACUATE, asked)

    @rule(asked=_ASKED, wanted=st.sampled_from(list(Immediate)))
    @precondition(_is_there)
    def do_at_once(self, asked: Asked, wanted: Immediate) -> None:
        self._ask(wanted, asked)

    @rule(asked=_ASKED, wanted=st.sampled_from([action for action in TABLE if action is not _O.CREATE]))
    @precondition(_is_there)
    def ask_anything(self, asked: Asked, wanted: Action) -> None:
        """Whether or not the table allows it."""
        self._ask_of(wanted, _NAMES[asked.slot], asked)

    @rule(slot=_SLOTS, through=st.integers(0, 1))
    @precondition(_is_there)
    def cancel(self, slot: int, through: int) -> None:
        """Ask an operation that runs to stop."""
        running = sorted(self.world.story.running_operations(), key=lambda each: (each.subject, each.create_time))
        if running:
            self._run(self.world.cancel(running[slot % len(running)], through=through))

    @rule(asked=_ASKED, node=_NODES)
    @precondition(_is_there)
    def drain(self, asked: Asked, node: int) -> None:
        operation = self._run(self.world.drain(self._node(node), number=asked.number, through=asked.through))
        if isinstance(operation, Operation):
            self._wait(operation, asked.wait_s)

    @rule(node=_NODES, bring_back=st.booleans(), through=st.integers(0, 1))
    @precondition(_is_there)
    def uncordon(self, node: int, bring_back: bool, through: int) -> None:
        self._run(self.world.uncordon(self._node(node), bring_back=bring_back, through=through))

    @rule(node=_NODES, through=st.integers(0, 1))
    @precondition(_is_there)
    def attest(self, node: int, through: int) -> None:
        """An operator says that a host is off which is."""
        if not self.world.story.cluster.nodes[self._node(node)].host.powered:
            self._run(self.world.attest(self._node(node), through=through))

    @rule(seconds=_SPANS)
    def let_time_pass(self, seconds: float) -> None:
        if self.is_there:
            self._run(self.world.pass_time(seconds))

    # Failures.

    @rule(node=_NODES, before=st.booleans(), skip=st.integers(0, 4), count=st.sampled_from([1, 1, 2, 5, 30]))
    @precondition(_is_there)
    def lose_calls(self, node: int, before: bool, skip: int, count: int) -> None:
        self._run_now(lambda w: w.failures.fail_calls(self._node(node), before=before, skip=skip, count=count))

    @rule(node=_NODES, down_s=_SPANS)
    @precondition(_is_there)
    def restart_agent(self, node: int, down_s: float) -> None:
        self._run(self.world.failures.restart_agent(self._node(node), down_s=down_s))

    @rule(index=st.integers(0, 1), at_call=st.integers(1, 12), down_s=_SPANS)
    @precondition(_is_there)
    def crash_controller(self, index: int, at_call: int, down_s: float) -> None:
        self._run_now(lambda w: w.failures.crash_controller(index, at_call=at_call, down_s=down_s))

    @rule(node=_NODES, down_s=_SPANS)
    @precondition(_is_there)
    def cut_power(self, node: int, down_s: float) -> None:
        self._run(self.world.failures.cut_power(self._node(node), down_s=down_s))

    @rule(node=_NODES, other=st.integers(0, 3), for_s=_SPANS)
    @precondition(_is_there)
    def cut_off(self, node: int, other: int, for_s: float) -> None:
        """From another host, or, when that would be itself, from the controllers."""
        name, far = self._node(node), self._node(other)
        self._run_now(lambda w: w.failures.cut_off(name, other="" if far == name else far, for_s=for_s))

    @rule(node=_NODES, local=st.booleans(), hangs=st.booleans(), for_s=_SPANS)
    @precondition(_is_there)
    def lose_pool(self, node: int, local: bool, hangs: bool, for_s: float) -> None:
        name = self._node(node)
        self._run_now(lambda w: w.failures.lose_pool(name, w.pool_of(name, local=local), hangs=hangs, for_s=for_s))

    @rule(node=_NODES, what=st.sampled_from(["start", "job", "copy", "switch"]), for_s=_SPANS)
    @precondition(_is_there)
    def break_hypervisor(self, node: int, what: str, for_s: float) -> None:
        self._run_now(lambda w: w.failures.refuse(self._node(node), what, for_s=for_s))

    @rule(index=st.integers(0, 3), by_itself=st.booleans())
    @precondition(_is_there)
    def end_guest(self, index: int, by_itself: bool) -> None:
        self._run_now(lambda w: w.failures.end_guest(index, by_itself=by_itself))

    def _run_now(self, act: Callable[[World], None]) -> None:
        async def now() -> None:
            act(self.world)

        self._run(now())
