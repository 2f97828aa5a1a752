"""Moves many instances, each by an operation of its own: what a drain and its way back have in common.

All that is decided is written down with the operation before it counts: which instances there are, and which operation
moves each of them at which attempt. Those operations have names that follow from this one's, so whoever takes over in
the middle finds those that were begun, and begins none twice.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from leeward import keys
from leeward.errors import Conflict, LeewardError, OperationRunning, StoreIndefinite, Unavailable, Violation
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node_operation import (
    DRAIN_LABEL,
    DrainPolicy,
    DrainProgress,
    Move,
    MovePhase,
    OnFailure,
)
from leeward_controller.domain.operation import (
    Arguments,
    LiveMigrateArguments,
    MigrateArguments,
    Operation,
    OperationPhase,
    OperationType,
    PlainArguments,
)
from leeward_controller.domain.transitions import TABLE
from leeward_controller.operations.context import StepContext
from leeward_controller.records import INSTANCES, OPERATIONS, Stored

_LOOK_S = 0.25
_BUSY_PAUSE_S = 1.0
_RETRY_PAUSE_S = 5.0
_WAIT_PAUSE_S = 15.0


@dataclass(frozen=True, slots=True)
class Means:
    """How an instance is moved: the operation that does it."""

    type: OperationType
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Limits:
    """How many are moved at a time, how often each is tried again, and what a failure means for the others."""

    parallelism: int
    retries: int
    on_failure: OnFailure = OnFailure.CONTINUE


def means_for(instance: Instance, *, to: str = "") -> Means | str:
    """How this instance can be moved as it is now, by its state and its label; else why it cannot, in words."""
    live = Means(OperationType.LIVE_MIGRATE, LiveMigrateArguments(node=to))
    cold = Means(OperationType.MIGRATE, MigrateArguments(node=to))
    off = Means(OperationType.OFFLOAD, PlainArguments())
    order = (cold, live) if policy_of(instance) is DrainPolicy.COLD else (live, cold)
    for means in order if to else (*order, off):
        if instance.state in TABLE[means.type].allowed_from:
            return means
    return f"it is {instance.state}, and can be moved neither live nor cold"


def policy_of(instance: Instance) -> DrainPolicy:
    """What the instance's owner wants of a drain. A word that is not known means the default."""
    wanted = instance.labels.get(DRAIN_LABEL, DrainPolicy.LIVE.value)
    return next((policy for policy in DrainPolicy if policy == wanted), DrainPolicy.LIVE)


class Mover:
    """Moves what `moves` names, and what `found` tells of later. `is_there` says that an instance needs no moving.

    `to` is the node to move to; empty for the scheduler's choice. `means` tells how an instance is moved, where that is
    not by its state and its label. `part` keeps apart what one operation does with the same instances in two steps.
    """

    def __init__(
        self,
        context: StepContext,
        *,
        moves: Iterable[Move],
        is_there: Callable[[Instance], bool],
        limits: Limits,
        found: Callable[[], Iterable[Move]] = tuple,
        to: str = "",
        means: Callable[[Instance], Means | str] | None = None,
        part: str = "",
    ) -> None:
        self._context = context
        self._clock = context.surroundings.clock
        self._moves = {move.instance_uid: move for move in moves}
        self._is_there = is_there
        self._limits = limits
        self._found = found
        self._means = means or (lambda instance: means_for(instance, to=to))
        self._part = part
        self._not_before_s: dict[str, float] = {}
        self._written = context.operation.work.moves
        self._told: tuple[Move, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        """All of them as they stand, by name."""
        return tuple(sorted(self._moves.values(), key=lambda move: move.instance))

    def count(self, phase: MovePhase) -> int:
        """How many stand there."""
        return DrainProgress(self.moves).count(phase)

    async def advance(self) -> bool:
        """Look, begin what is due, write down what is new; whether nothing more will happen by itself.

        Asked to cancel, it ends what is under way and begins nothing. Raises Superseded, StoreUnavailable,
        StoreIndefinite.
        """
        for move in self._found():
            self._moves.setdefault(move.instance_uid, move)
        for move in self.moves:
            self._put(await self._looked_at(move))
        if self._context.cancelled.is_set():
            await self._cancel()
        elif not self._is_stopping():
            await self._begin_due()
        await self._tell()
        return not self.count(MovePhase.MOVING) and not self._may_begin()

    async def rest(self) -> None:
        """Until there may be news."""
        view, keys_ = self._context.view, [_key(m.operation) for m in self.moves if m.phase is MovePhase.MOVING]
        seen = [view.operations.get(key) for key in keys_]

        def news() -> bool:
            return [view.operations.get(key) for key in keys_] != seen

        await view.wait_for(news, timeout_s=_LOOK_S)

    def violations(self) -> list[Violation]:
        """One for each instance that is not where it shall be."""
        return [
            Violation("INSTANCE", move.instance, move.error or "its turn had not come")
            for move in self.moves
            if move.phase in (MovePhase.FAILED, MovePhase.WAITING)
        ]

    def _put(self, move: Move) -> None:
        self._moves[move.instance_uid] = move

    def _is_stopping(self) -> bool:
        return self._limits.on_failure is OnFailure.STOP and self.count(MovePhase.FAILED) > 0

    def _may_begin(self) -> bool:
        ended = self._context.cancelled.is_set() or self._is_stopping()
        return not ended and self.count(MovePhase.WAITING) > 0

    async def _looked_at(self, move: Move) -> Move:
        """A move as it stands now."""
        if move.phase is MovePhase.MOVING:
            operation = await self._operation(move.operation)
            if operation is not None and not operation.phase.ended:
                percent = self._context.percent_of(operation)
                return replace(move, percent=percent, target_node=operation.work.target_node or move.target_node)
            return self._ended(move, operation)
        if move.phase is MovePhase.MOVED:
            return move
        seen = self._context.view.instances.get(keys.instance(move.instance))
        is_gone = seen is None or seen.value.uid != move.instance_uid
        if is_gone or (seen is not None and self._is_there(seen.value)):
            return replace(move, phase=MovePhase.MOVED, error="")
        return move

    async def _operation(self, name: str) -> Operation | None:
        """An operation that was begun; the view may not know it yet."""
        stored = self._context.view.operations.get(_key(name))
        if stored is None:
            stored = await self._context.surroundings.records.get(OPERATIONS, _key(name))
        return None if stored is None else stored.value

    def _ended(self, move: Move, operation: Operation | None) -> Move:
        """After its operation has ended; one that was forgotten since is judged by where the instance is."""
        if operation is None:
            return replace(move, phase=MovePhase.WAITING)
        if operation.phase is OperationPhase.SUCCEEDED:
            return replace(move, phase=MovePhase.MOVED, percent=100, target_node=operation.work.target_node, error="")
        error = operation.error.message if operation.error else str(operation.phase)
        return self._failed(replace(move, percent=0, target_node=""), error)

    def _failed(self, move: Move, error: str) -> Move:
        """It is tried again while it may be, a little later each time."""
        waits = self._limits.on_failure is OnFailure.WAIT
        if move.attempt > self._limits.retries and not waits:
            return replace(move, phase=MovePhase.FAILED, error=error)
        pause_s = _WAIT_PAUSE_S if move.attempt > self._limits.retries else _RETRY_PAUSE_S * move.attempt
        self._put_off(move, pause_s)
        return replace(move, phase=MovePhase.WAITING, error=error)

    def _put_off(self, move: Move, seconds: float) -> None:
        self._not_before_s[move.instance_uid] = self._clock.monotonic_s() + seconds

    async def _begin_due(self) -> None:
        if self._context.node.node not in self._context.view.leases:
            return  # Nothing can be moved from or to it now; failover finds out whether it is dead.
        room = self._limits.parallelism - self.count(MovePhase.MOVING)
        for move in self.moves:
            if room <= 0:
                return
            if move.phase is MovePhase.WAITING and self._is_due(move):
                begun = await self._begin(move)
                self._put(begun)
                room -= begun.phase is MovePhase.MOVING

    def _is_due(self, move: Move) -> bool:
        return self._clock.monotonic_s() >= self._not_before_s.get(move.instance_uid, 0.0)

    async def _begin(self, move: Move) -> Move:
        stored = await self._context.surroundings.records.get(INSTANCES, keys.instance(move.instance))
        if stored is None or stored.value.uid != move.instance_uid or self._is_there(stored.value):
            return replace(move, phase=MovePhase.MOVED, error="")
        if policy_of(stored.value) is DrainPolicy.STAY:
            return replace(move, phase=MovePhase.STAYS, error=f"its label {DRAIN_LABEL} is {DrainPolicy.STAY}")
        return await self._begin_stored(move, stored)

    async def _begin_stored(self, move: Move, stored: Stored[Instance]) -> Move:
        next_try = replace(move, attempt=move.attempt + 1)
        means = self._means(stored.value)
        part = f"{self._part}{move.instance_uid}/{next_try.attempt}"
        try:
            if isinstance(means, str):
                if stored.value.current_operation:
                    # What runs on it may lead to a state from which it can be moved.
                    return self._busy(move, f"it waits for {stored.value.current_operation}: {means}")
                return self._failed(replace(next_try, attempt=max(next_try.attempt, self._limits.retries + 1)), means)
            operation = await self._context.children.begin_child(
                self._context.operation, stored, means.type, means.arguments, part=part
            )
        except OperationRunning as error:
            return self._busy(move, error.message)
        except (Unavailable, StoreIndefinite):
            raise
        except Conflict:
            return move  # It has just changed; the next look sees how.
        except LeewardError as error:
            return self._failed(next_try, error.message)
        return replace(next_try, phase=MovePhase.MOVING, operation=operation.name, error="")

    def _busy(self, move: Move, why: str) -> Move:
        """Something else is going on with it, which has an end: that is no failure of its move."""
        self._put_off(move, _BUSY_PAUSE_S)
        return replace(move, error=why)

    async def _cancel(self) -> None:
        for move in self.moves:
            if move.phase is MovePhase.MOVING:
                await self._context.children.cancel_child(move.operation)

    async def _tell(self) -> None:
        moves = self.moves
        if _lasting(moves) != _lasting(self._written):
            await self._context.remember(replace(self._context.operation.work, moves=moves))
            self._written = moves
        if moves != self._told:
            self._told = moves
            self._context.tell_progress(DrainProgress(moves))


def _lasting(moves: tuple[Move, ...]) -> list[Move]:
    """What has to be written down: all but figures that change all the time."""
    return [replace(move, percent=0, target_node="") for move in moves]


def _key(operation: str) -> str:
    return keys.operation(operation.removeprefix("operations/"))
