"""What an operation is made of: named steps that observe, act, verify, and may be repeated safely."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.node import Node, Reservation
from leeward_controller.domain.operation import OperationType, Work
from leeward_controller.operations.context import StepContext

DONE = "done"


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step leads to. The runner writes all of it, and that the step is done, in one transaction.

    `instance` maps the instance as it is at that moment to what it becomes, so a step never writes over a change that
    it has not seen; `node` does the same for an operation on a node.

    `reserve_on` and `release_from` change what is held on nodes; a reservation is checked against what is there, and it
    is a Conflict when it comes too late. `put_image` is a new image's record, and `drop_image` names one whose record
    goes.

    `outcome` is what the history says of the step, in words.

    An undo that finds its step done, and beyond taking back, says so by `is_done_after_all`: the operation then goes
    forward from there.
    """

    work: Work | None = None
    instance: Callable[[Instance], Instance] | None = None
    remove_instance: bool = False
    node: Callable[[Node], Node] | None = None
    remove_node: bool = False
    reserve_on: str = ""
    reservation: Reservation | None = None
    release_from: tuple[str, ...] = ()
    put_image: Image | None = None
    drop_image: str = ""
    skip_rest: bool = False
    outcome: str = DONE
    is_done_after_all: bool = False

    @property
    def changes_subject(self) -> bool:
        """Whether the record that the operation is about becomes another one, or goes."""
        return bool(self.instance or self.remove_instance or self.node or self.remove_node)


Act = Callable[[StepContext], Coroutine[Any, Any, Advance]]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `undo` takes back what `act` may have done, also when `act` was cut off half-way.

    A step that `commits` is the point of no return: once it is done the operation only goes forward. `deadline_s`
    bounds the steps up to there. Behind it, and when undoing, giving up would leave the record untrue (a guest may run
    where nobody looks for it), so there a step is tried until what it needs is back, or its node is fenced;
    `deadline_s` then bounds one try. A step that `handles_cancel` sees `context.cancelled` itself; others are simply
    stopped when a cancellation comes before the commit point. One that is often `passed_by`, as it finds nothing to do,
    has that written with the end of the step after it; who takes over in between passes it by once more.
    """

    name: str
    act: Act
    undo: Act | None = None
    deadline_s: float = 60.0
    commits: bool = False
    handles_cancel: bool = False
    passed_by: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """One type of operation: its steps in order, and what happens when it cannot succeed.

    One that `begins_decided` has a first step (behind those that are passed by) which only chooses, by what the replica
    knows: it is taken before the operation is written, so that the choice is in the same transaction.
    """

    type: OperationType
    steps: tuple[Step, ...]
    state_after_failure: InstanceState | None = None
    attempts: int = 1
    begins_decided: bool = False
    names: dict[str, int] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        self.names.update({step.name: index for index, step in enumerate(self.steps)})

    def index_of(self, step: str) -> int:
        """The position of a step by its name."""
        return self.names[step]

    def undo_from(self, step: str) -> str:
        """Where undoing begins when this step cannot be done.

        A record that stands at a step that is passed by may be that of a replica which died in the one after it: what
        that has done must be undone, too, and undoing what was never done is safe.
        """
        index = self.index_of(step)
        while self.steps[index].passed_by and index + 1 < len(self.steps):
            index += 1
        return self.steps[index].name

    def past_commit(self, step: str) -> bool:
        """Whether the step to take next lies behind the commit point."""
        return any(earlier.commits for earlier in self.steps[: self.index_of(step)])
