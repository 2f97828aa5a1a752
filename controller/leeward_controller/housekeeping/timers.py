"""What is done to an instance when its time is up: confirm a resize, offload a shelved one, let a deleted one go.

A time that passed while nobody led is acted upon by the next leader. An operation that fails is begun again after a
pause that grows; one that somebody else has running comes first.
"""

from dataclasses import dataclass
from datetime import datetime

import structlog

from leeward import keys
from leeward.errors import Conflict, LeewardError, OperationRunning, Unavailable
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import Arguments, DeleteArguments, OperationType, PlainArguments
from leeward_controller.housekeeping.duty import NEVER_S
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import Stored

log = structlog.get_logger()

_REQUESTER = Requester(principal="leeward:timer", admin=True)
_FIRST_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 600.0
_CONFLICT_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Timer:
    """What is done to an instance at a time."""

    time: datetime
    wanted: OperationType
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class _Tried:
    """A timer that has been acted upon: how often, and when it may be again, on the monotonic clock."""

    timer: Timer
    count: int
    not_before_s: float


def timer_of(instance: Instance) -> Timer | None:
    """What an instance waits for, if it does, and nothing else is going on with it."""
    if instance.current_operation:
        return None
    match instance.state:
        case InstanceState.RESIZED if instance.resize is not None and instance.resize.confirm_time is not None:
            return Timer(instance.resize.confirm_time, OperationType.CONFIRM_RESIZE, PlainArguments())
        case InstanceState.SHELVED if instance.shelf is not None and instance.shelf.offload_time is not None:
            return Timer(instance.shelf.offload_time, OperationType.OFFLOAD, PlainArguments())
        case InstanceState.SOFT_DELETED if instance.deletion is not None:
            return Timer(instance.deletion.expire_time, OperationType.DELETE, DeleteArguments(retention_s=0.0))
    return None


class Timers:
    """Begins what instances have a time for."""

    name = "timers"

    def __init__(self, *, surroundings: Surroundings, submitter: Submitter, leader_epoch: int) -> None:
        self._view = surroundings.view
        self._clock = surroundings.clock
        self._submitter = submitter
        self._leader_epoch = leader_epoch
        self._timers: dict[str, Timer] | None = None
        self._tried: dict[str, _Tried] = {}

    def concerns(self, key: str) -> bool:
        if self._timers is None or not key.startswith(keys.INSTANCES):
            return False
        stored = self._view.instances.get(key)
        timer = timer_of(stored.value) if stored is not None else None
        if timer is None:
            self._timers.pop(key, None)
            return False
        self._timers[key] = timer
        return True

    async def work(self) -> float:
        if self._timers is None:
            found = {key: timer_of(stored.value) for key, stored in self._view.instances.items()}
            self._timers = {key: timer for key, timer in found.items() if timer is not None}
        pause_s = NEVER_S
        for key, timer in sorted(self._timers.items()):
            wait_s = self._wait_s(key, timer)
            if wait_s <= 0:
                await self._begin(key, timer)
                wait_s = self._wait_s(key, timer)
            pause_s = min(pause_s, wait_s)
        return pause_s

    def _wait_s(self, key: str, timer: Timer) -> float:
        due_s = (timer.time - self._clock.now()).total_seconds()
        tried = self._tried.get(key)
        if tried is None or tried.timer != timer:
            return due_s
        return max(due_s, tried.not_before_s - self._clock.monotonic_s())

    async def _begin(self, key: str, timer: Timer) -> None:
        stored = self._view.instances.get(key)
        if stored is None or timer_of(stored.value) != timer:
            return
        try:
            await self._submit(stored, timer)
        except Conflict:
            self._put_off(key, timer, _CONFLICT_PAUSE_S, count=self._count(key, timer))
            return
        except Unavailable:
            raise
        except LeewardError as error:
            log.warning("timer.not_begun", instance=stored.value.name, wanted=timer.wanted, why=error.message)
        # When what was begun fails, the instance waits for the same time again.
        count = self._count(key, timer)
        self._put_off(key, timer, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**count), count=count + 1)

    async def _submit(self, stored: Stored[Instance], timer: Timer) -> None:
        try:
            await self._submitter.submit(
                stored, timer.wanted, timer.arguments, _REQUESTER, leader_epoch=self._leader_epoch
            )
            log.info("timer.begun", instance=stored.value.name, wanted=timer.wanted)
        except OperationRunning as error:
            # The view had not heard of it. The instance's record changes when that ends.
            log.info("timer.waits", instance=stored.value.name, wanted=timer.wanted, why=error.message)

    def _count(self, key: str, timer: Timer) -> int:
        tried = self._tried.get(key)
        return tried.count if tried is not None and tried.timer == timer else 0

    def _put_off(self, key: str, timer: Timer, pause_s: float, *, count: int) -> None:
        self._tried[key] = _Tried(timer, count, self._clock.monotonic_s() + pause_s)
