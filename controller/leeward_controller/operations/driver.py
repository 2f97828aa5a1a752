"""Takes one operation from where it stands to its end."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog

from leeward.agent.types import Caller
from leeward.errors import (
    Cancelled,
    Code,
    Conflict,
    DeadlineExceeded,
    HypervisorError,
    InternalError,
    LeewardError,
    NodeGone,
    NodeUnfit,
    NoNodeFits,
    StaleClaim,
    StorageError,
    StoreUnavailable,
    Unavailable,
)
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation, OperationError, OperationPhase, StepRecord, Work
from leeward_controller.operations.context import Children, Progress, StepContext, Surroundings
from leeward_controller.operations.definitions import DEFINITIONS
from leeward_controller.operations.recording import Recorder, Superseded
from leeward_controller.operations.step import Act, Advance, Step
from leeward_controller.operations.subject import Subject, read_subject
from leeward_controller.records import Stored

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_UNDO_TRY_S = 300.0
_HISTORY_LENGTH = 64
_NEVER_ELSEWHERE = (Cancelled, NoNodeFits, NodeUnfit)
_AWAY = (Unavailable, Conflict)
_PASSES = (*_AWAY, HypervisorError, StorageError, DeadlineExceeded)
"""What a step that must not be given up waits out: the world may be well again, while the request never changes."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """When a step was begun, on both clocks."""

    at_s: float
    time: datetime


class Driver:
    """Drives one operation. `stored` is the record as this driver last wrote or read it, and steps passed by since."""

    def __init__(
        self,
        stored: Stored[Operation],
        *,
        surroundings: Surroundings,
        recorder: Recorder,
        children: Children,
        tell_progress: Callable[[Progress], None],
        percent_of: Callable[[Operation], int],
    ) -> None:
        self.stored = stored
        self._written = stored
        self._surroundings = surroundings
        self._recorder = recorder
        self._children = children
        self._tell_progress = tell_progress
        self._percent_of = percent_of
        self._definition = DEFINITIONS[stored.value.type]
        self._cancelled = asyncio.Event()
        self.notice(stored)

    def notice(self, seen: Stored[Operation]) -> None:
        """Take in that a cancellation was asked for."""
        if seen.value.cancel_requested:
            self._cancelled.set()

    async def run(self) -> None:
        """Take steps until the operation has ended. Raises Superseded."""
        while not self.stored.value.phase.ended:
            if self.stored.value.phase is OperationPhase.UNDOING:
                await self._undo_one()
            else:
                await self._act_one()

    async def decide(self, subject: Subject) -> tuple[Operation, Advance]:
        """What an operation that is not written yet is once its first choice is made, and what that leads to.

        Raises what the step raises.
        """
        while True:
            step = self._definition.steps[self._definition.index_of(self.stored.value.step)]
            begun = self._begin()
            advance = await step.act(self._context(step, subject))
            outcome = self._gone_forward(advance, step, begun)
            if not step.passed_by or advance != Advance():
                return outcome
            self.stored = replace(self.stored, value=outcome[0])

    async def _act_one(self) -> None:
        step = self._definition.steps[self._definition.index_of(self.stored.value.step)]
        begun = self._begin()
        try:
            if self._may_cancel(step):
                raise Cancelled("cancelled on request")
            await self._attempt(
                step,
                step.act,
                deadline_s=step.deadline_s,
                patient=self._definition.past_commit(step.name),
                done=lambda a: self._gone_forward(a, step, begun),
            )
        except LeewardError as error:
            log.info("operation.step_failed", operation=self.stored.value.name, step=step.name, error=error.message)
            await self._write(self._turned_back(error, step, begun))

    async def _undo_one(self) -> None:
        step = self._definition.steps[self._definition.index_of(self.stored.value.step)]
        begun = self._begin()
        outcome = "undone"
        try:
            if step.undo is not None:
                await self._attempt(
                    step,
                    step.undo,
                    deadline_s=_UNDO_TRY_S,
                    patient=True,
                    done=lambda a: self._gone_back(a, step, begun, "undone"),
                )
                return
        except NodeGone as error:
            outcome = f"nothing to undo: {error.message}"
        except LeewardError as error:
            # The guest may be there still, so it keeps all that it has of its place, until it is deleted.
            log.error("operation.undo_failed", operation=self.stored.value.name, step=step.name, error=error.message)
            cause = self.stored.value.undo_cause
            assert cause is not None
            await self._write(self._ended(self._with_history(step, begun, f"not undone: {error.message}"), cause))
            return
        await self._write(self._gone_back(Advance(), step, begun, outcome))

    async def _attempt(
        self,
        step: Step,
        act: Act,
        *,
        deadline_s: float,
        patient: bool,
        done: Callable[[Advance], tuple[Operation, Advance]],
    ) -> None:
        """Take a step and record it, again and again while what it needs is away: until its deadline, or, when
        `patient`, for as long as it takes.

        Raises Cancelled (asked for, and the step can be cut off), DeadlineExceeded, or what the step raised.
        """
        clock = self._surroundings.clock
        deadline_at_s = clock.monotonic_s() + deadline_s
        pause_s = _FIRST_PAUSE_S
        while True:
            context = self._context(step, await self._subject(self.stored.value))
            left_s = deadline_s if patient else max(0.0, deadline_at_s - clock.monotonic_s())
            try:
                await self._try(step, act(context), within_s=left_s, done=done)
                return
            except StaleClaim as error:
                raise Superseded(error.message) from error
            except _PASSES as error:
                if self._may_cancel(step):
                    raise Cancelled("cancelled on request") from error
                over = not isinstance(error, _AWAY) or clock.monotonic_s() + pause_s >= deadline_at_s
                if over and not patient:
                    raise
                log.info("operation.step_waits", operation=self.stored.value.name, step=step.name, why=error.message)
            await clock.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _try(
        self,
        step: Step,
        act: Coroutine[Any, Any, Advance],
        *,
        within_s: float,
        done: Callable[[Advance], tuple[Operation, Advance]],
    ) -> None:
        try:
            async with asyncio.timeout(within_s):
                advance = await self._cut_off_when_cancelled(step, act)
        except TimeoutError:
            raise DeadlineExceeded(f"{step.name} was not done within {within_s:g} s") from None
        except LeewardError:
            raise
        except Exception as defect:
            # What a step promises to raise is a LeewardError. Anything else must end in the operation's outcome, too.
            log.exception("operation.step_has_a_defect", operation=self.stored.value.name, step=step.name)
            raise InternalError(f"{step.name} failed by a defect: {type(defect).__name__}: {defect}") from defect
        outcome = done(advance)
        forward = self.stored.value.phase is outcome[0].phase is OperationPhase.RUNNING
        if step.passed_by and forward and advance == Advance():
            self.stored = replace(self._written, value=outcome[0])
            return
        await self._write(outcome)

    def _may_cancel(self, step: Step) -> bool:
        """Whether a cancellation was asked for and this step can be cut off. Nothing that is being undone can."""
        return self._cancelled.is_set() and self._interruptible(step)

    def _interruptible(self, step: Step) -> bool:
        forward = self.stored.value.phase is OperationPhase.RUNNING
        return forward and not step.handles_cancel and not self._definition.past_commit(step.name)

    async def _cut_off_when_cancelled(self, step: Step, act: Coroutine[Any, Any, Advance]) -> Advance:
        if not self._interruptible(step):
            return await act
        doing = asyncio.ensure_future(act)
        cancel = asyncio.ensure_future(self._cancelled.wait())
        try:
            await asyncio.wait({doing, cancel}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
        finally:
            cancel.cancel()
            doing.cancel()
            await asyncio.gather(doing, cancel, return_exceptions=True)
        raise Cancelled("cancelled on request")

    def _context(self, step: Step, subject: Subject) -> StepContext:
        operation = self.stored.value
        return StepContext(
            operation=operation,
            subject=subject,
            caller=Caller(operation.name, step.name, self._written.revision),
            surroundings=self._surroundings,
            children=self._children,
            cancelled=self._cancelled,
            tell_progress=self._tell_progress,
            percent_of=self._percent_of,
            remember=self._remember,
        )

    async def _subject(self, operation: Operation) -> Subject:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                found = await read_subject(self._surroundings.records, operation, since=self.stored.revision)
            except StoreUnavailable:
                await self._surroundings.clock.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            if found is None:
                raise Superseded(f"{operation.subject} of {operation.name} is gone")
            subject: Subject = found.value
            return subject

    def _begin(self) -> _Beginning:
        clock = self._surroundings.clock
        return _Beginning(clock.monotonic_s(), clock.now())

    def _with_history(self, step: Step, begun: _Beginning, outcome: str, /, **changes: Any) -> Operation:
        operation, clock = self.stored.value, self._surroundings.clock
        seconds = round(clock.monotonic_s() - begun.at_s, 6)
        entry = StepRecord(step.name, begun.time, seconds, operation.owner, outcome)
        history = (*operation.history, entry)[-_HISTORY_LENGTH:]
        return replace(operation, history=history, update_time=clock.now(), **changes)

    def _gone_forward(self, advance: Advance, step: Step, begun: _Beginning) -> tuple[Operation, Advance]:
        changes: dict[str, Any] = {} if advance.work is None else {"work": advance.work}
        following = self._definition.index_of(step.name) + 1
        if advance.skip_rest or following == len(self._definition.steps):
            changes |= {"phase": OperationPhase.SUCCEEDED, "end_time": self._surroundings.clock.now()}
        else:
            changes["step"] = self._definition.steps[following].name
        return self._with_history(step, begun, advance.outcome, **changes), advance

    def _turned_back(self, error: LeewardError, step: Step, begun: _Beginning) -> tuple[Operation, Advance]:
        new = self._with_history(step, begun, f"{error.specific_reason}: {error.message}")
        if self._definition.past_commit(step.name):
            return self._ended(new, OperationError.of(error))
        undone_first = self._definition.undo_from(step.name)
        undoing = replace(new, phase=OperationPhase.UNDOING, step=undone_first, undo_cause=OperationError.of(error))
        return undoing, Advance()

    def _gone_back(self, advance: Advance, step: Step, begun: _Beginning, outcome: str) -> tuple[Operation, Advance]:
        new = self._with_history(step, begun, outcome)
        if advance.work is not None:
            new = replace(new, work=advance.work)
        index = self._definition.index_of(step.name)
        if advance.is_done_after_all:
            new = replace(new, phase=OperationPhase.RUNNING, undo_cause=None)
            return replace(new, step=self._definition.steps[index + 1].name), advance
        if index > 0:
            return replace(new, step=self._definition.steps[index - 1].name), advance
        cause = new.undo_cause
        assert cause is not None
        if self._goes_elsewhere(new, cause):
            work = replace(new.work, attempt=new.work.attempt + 1, note=cause.message)
            return replace(new, phase=OperationPhase.RUNNING, undo_cause=None, work=work), advance
        ended, end = self._ended(new, cause)
        return ended, replace(advance, instance=_both(advance.instance, end.instance))

    def _goes_elsewhere(self, operation: Operation, cause: OperationError) -> bool:
        named = getattr(operation.arguments, "node", "")
        final = cause.code in (Code.CANCELLED.value, Code.INVALID_ARGUMENT.value) or cause.reason in {
            kind.reason for kind in _NEVER_ELSEWHERE
        }
        room = operation.work.attempt + 1 < self._definition.attempts
        return room and not named and not final and not operation.cancel_requested

    def _ended(self, operation: Operation, cause: OperationError) -> tuple[Operation, Advance]:
        cancelled = cause.code == Code.CANCELLED.value
        phase = OperationPhase.CANCELLED if cancelled else OperationPhase.FAILED
        ended = replace(operation, phase=phase, error=cause, end_time=operation.update_time)
        state = self._definition.state_after_failure
        if state is None:
            return ended, Advance()
        return ended, Advance(instance=lambda instance: replace(instance, state=state, fault=cause.message))

    async def _remember(self, work: Work) -> None:
        now = self._surroundings.clock.now()
        await self._write((replace(self.stored.value, work=work, update_time=now), Advance()))

    async def _write(self, outcome: tuple[Operation, Advance]) -> None:
        new, advance = outcome
        self.stored = self._written = await self._recorder.write(self._written, new, advance)
        self.notice(self.stored)


def _both(
    first: Callable[[Instance], Instance] | None, second: Callable[[Instance], Instance] | None
) -> Callable[[Instance], Instance] | None:
    if first is None or second is None:
        return first or second
    return lambda instance: second(first(instance))
