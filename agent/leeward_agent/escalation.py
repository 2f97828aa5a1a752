"""When a live migration does not come to its end by copying alone, and what to do then. Pure.

Memory is copied in passes: the first carries all of it, each later one what the guest changed during the pass before.
The guest can be stopped for the last pass as soon as that would take no longer than its downtime budget. What is left
when a pass begins, divided by the throughput, is therefore what a stop would cost now; a migration converges when this
falls from pass to pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from leeward.agent.types import Escalation, MigrationLimits, MigrationProgress

MIB = 1024 * 1024

# QEMU's own default of `downtime-limit`, where the caller sets none.
DEFAULT_DOWNTIME_MS = 300
# A stop that falls by less than a tenth is no progress: at that rate halving it takes seven passes.
PROGRESS = 0.9
# The first passes after auto-converge begins to slow the guest often gain nothing yet.
STALLED_PASSES = 3
# However it goes, copying again may take this many times as long as the first pass, and not less than the second value.
PATIENCE = 3.0
LEAST_PATIENCE_S = 5.0
# Of the whole time allowed; what is left must suffice for the last step.
LATEST = 0.8
# Passes that are remembered; more than enough to see a stall.
REMEMBERED_PASSES = 64


class Action(StrEnum):
    """What is done about a migration."""

    COPY = "COPY"  # Copy on, with the guest slowed down where auto-converge is allowed.
    POST_COPY = "POST_COPY"  # Let the guest run on the destination and fetch what is missing.
    PAUSE = "PAUSE"  # Halt the guest until the rest is copied.


@dataclass(frozen=True, slots=True)
class Moment:
    """A migration as seen once, `at_s` after its start. `throttle` is how far the guest is slowed down, in percent."""

    at_s: float
    iteration: int
    remaining_bytes: int
    dirty_rate_bytes_s: int
    throughput_bytes_s: int
    throttle: int = 0

    @property
    def stop_ms(self) -> int:
        """How long the guest would stand still if the rest were copied now; 0 while the throughput is not known."""
        return 1000 * self.remaining_bytes // self.throughput_bytes_s if self.throughput_bytes_s else 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why, in words with figures; without words there is nothing to say yet."""

    action: Action
    words: str = ""


class History:
    """What is kept of a migration's course: how long the first pass took, how each later one began, the last look."""

    def __init__(self) -> None:
        self._began_at_s: float | None = None
        self.passes: list[Moment] = []
        self.latest: Moment | None = None

    @property
    def first_pass_s(self) -> float:
        """How long the first pass took; 0 while it lasts."""
        return self.passes[0].at_s - self._began_at_s if self.passes and self._began_at_s is not None else 0.0

    def add(self, moment: Moment) -> None:
        """Take a look at the memory being copied into account."""
        if self._began_at_s is None:
            self._began_at_s = moment.at_s
        self.latest = moment
        begun = self.passes[-1].iteration if self.passes else 1
        if moment.iteration > begun and moment.throughput_bytes_s:
            self.passes.append(moment)
            # The first one stays: it tells since when memory is copied again.
            del self.passes[1 : -REMEMBERED_PASSES + 1]


def moment_of(progress: MigrationProgress, *, at_s: float, throttle: int) -> Moment:
    """A progress report as it counts here."""
    return Moment(
        at_s=at_s,
        iteration=progress.iteration,
        remaining_bytes=progress.memory_remaining_bytes,
        dirty_rate_bytes_s=progress.dirty_rate_bytes_s,
        throughput_bytes_s=progress.throughput_bytes_s,
        throttle=throttle,
    )


def decide(history: History, limits: MigrationLimits) -> Decision:
    """Whether to copy on, or to go as far as `limits.escalation` allows."""
    now = history.latest
    if now is None or not history.passes:
        return Decision(Action.COPY)
    budget_ms = limits.max_downtime_ms or DEFAULT_DOWNTIME_MS
    last = history.passes[-1]
    state = _state(last, now, budget_ms=budget_ms)
    if last.stop_ms <= budget_ms:
        return Decision(Action.COPY, f"{state}: about to switch" if now.throttle else "")
    why = _hopeless(history, now, limits)
    if not why:
        return Decision(Action.COPY, state)
    rest = f"{now.remaining_bytes / MIB:.0f} MiB"
    match limits.escalation:
        case Escalation.POST_COPY:
            words = f"post-copy: {state}, {why}; the guest goes on at the destination and the last {rest} are fetched"
            return Decision(Action.POST_COPY, words)
        case Escalation.PAUSE:
            words = f"pause: {state}, {why}; the guest is halted until the last {rest} are copied"
            return Decision(Action.PAUSE, words)
        case Escalation.AUTO_CONVERGE:
            return Decision(Action.COPY, f"{state}, {why}; more than slowing the guest down is not allowed")
        case Escalation.NONE:
            return Decision(Action.COPY, f"{state}, {why}; nothing may be done about it")


def _hopeless(history: History, now: Moment, limits: MigrationLimits) -> str:
    """Why copying on is not expected to end it in good time; empty while it is."""
    stalled = _stalled_passes(history.passes)
    if stalled >= STALLED_PASSES:
        return f"and {stalled} passes brought no progress"
    patience_s = max(LEAST_PATIENCE_S, PATIENCE * history.first_pass_s)
    again_s = now.at_s - history.passes[0].at_s
    if again_s > patience_s:
        return f"and it has copied again for {again_s:.0f} s after a first pass of {history.first_pass_s:.0f} s"
    if now.at_s > LATEST * limits.timeout_s:
        return f"and {now.at_s:.0f} s of {limits.timeout_s:.0f} s have passed"
    return ""


def _stalled_passes(passes: Sequence[Moment]) -> int:
    """How many passes at the end brought what a stop would cost no further down."""
    best_ms = passes[0].stop_ms
    stalled = 0
    for each in passes[1:]:
        if each.stop_ms < PROGRESS * best_ms:
            best_ms, stalled = each.stop_ms, 0
        else:
            stalled += 1
    return stalled


def _state(begun: Moment, now: Moment, *, budget_ms: int) -> str:
    slowed = f", slowed by {now.throttle} %" if now.throttle else ""
    return (
        f"pass {begun.iteration}: the guest{slowed} changes {now.dirty_rate_bytes_s / MIB:.0f} MiB/s, "
        f"{now.throughput_bytes_s / MIB:.0f} MiB/s are copied, a stop would take {begun.stop_ms} ms of {budget_ms} ms"
    )
