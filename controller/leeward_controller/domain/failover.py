"""What became of a node that was lost: when it was noticed, how it was proved, and which guest was restarted where.

Times of day are for people. Seconds are for judging: they come from the monotonic clock of the controller that saw both
ends, so a clock that is set in between spoils none of them. Where no controller saw both (`measured` is false: another
one became the leader in between), they are differences of times of day, and never negative.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from leeward_controller.domain.node import ProofKind


class FailoverKind(StrEnum):
    """Whether it was in earnest."""

    FAILURE = "FAILURE"  # A node was lost.
    DRILL = "DRILL"  # A rehearsal: guests of a living node were moved live to where they would be restarted, and back.


class FailoverState(StrEnum):
    """How far a failover is, or how it ended."""

    SEEKING = "SEEKING"  # The node's lease is lost, and there is no proof yet that it runs nothing.
    RESTARTING = "RESTARTING"  # There is a proof; its instances are being restarted elsewhere.
    WAITING = "WAITING"  # Some could not be restarted yet, for want of a place or because all is held; tried again.
    RECOVERED = "RECOVERED"  # Ended: nothing is left on the node that was to be restarted elsewhere.
    RETURNED = "RETURNED"  # Ended: the node came back before there was a proof; its guests ran on.
    REBOOTED = "REBOOTED"  # Ended: the node came back in a new boot; what was still on it is started there again.
    INCOMPLETE = "INCOMPLETE"  # Ended: the node came back in the same boot, or was removed, before all had left it.

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (FailoverState.SEEKING, FailoverState.RESTARTING, FailoverState.WAITING)


class GuestOutcome(StrEnum):
    """What became of one instance of the lost node."""

    WAITING = "WAITING"  # Its turn has not come yet.
    RESTARTING = "RESTARTING"  # It is being restarted.
    RESTARTED = "RESTARTED"  # It has a new place, and runs there if it was meant to run.
    ELSEWHERE = "ELSEWHERE"  # It had left the node already, so there was nothing to do.
    NO_PLACE = "NO_PLACE"  # No node fitted when it was last tried.
    FAILED = "FAILED"  # Its last try ended with another error.
    CANCELLED = "CANCELLED"  # Its last try was cancelled, as by its deletion.
    STAYED = "STAYED"  # It was still on the node when that came back, or took no part in a drill after all.
    BROUGHT_BACK = "BROUGHT_BACK"  # In a drill: it was moved live to where it would be restarted, and is back.


@dataclass(frozen=True, slots=True)
class FailoverProof:
    """The proof that ended the search: of which kind, what was seen, when, and `seconds` after the lease was lost."""

    kind: ProofKind
    evidence: str
    time: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class FailoverGuest:
    """One instance of the lost node. `operation` is its last try, `tries` how many there were.

    `begun_s` and `ended_s` count from the moment the node's lease was lost; `restart_s` is how long its new node took
    to start it, and `ready_s` how long it then took until it was ready, where that was asked for and came in time; both
    are on the clock of the controller that drove it.
    """

    instance: str
    instance_uid: str
    outcome: GuestOutcome
    to_node: str = ""
    operation: str = ""
    tries: int = 0
    begin_time: datetime | None = None
    end_time: datetime | None = None
    begun_s: float | None = None
    ended_s: float | None = None
    restart_s: float | None = None
    error: str = ""
    ready_s: float | None = None


@dataclass(frozen=True, slots=True)
class FailoverRecord:
    """One failover: of one boot of one node, from the moment the leader saw that its lease was lost.

    All `_s` count in seconds from there: `detect_s` to when both heartbeats were found to be lost (or to the proof,
    when that came first), `first_restart_s` and `last_restart_s` to restarted instances, `total_s` to the end.
    `to_restart` and `left_alone` were counted at the proof: what is to be restarted on failure and what is not. The
    counts after them are of outcomes. `guests` has the first of them by name, `guests_left_out` counts the rest.

    A drill begins with its `operation` and has no proof; what was moved counts as restarted. It has RECOVERED when all
    could be moved and are back.
    """

    id: str
    node: str
    boot_id: str
    state: FailoverState
    begin_time: datetime
    controller: str
    measured: bool = True
    detect_s: float | None = None
    proof: FailoverProof | None = None
    to_restart: int = 0
    left_alone: int = 0
    restarted: int = 0
    failed: int = 0
    no_place: int = 0
    waiting: int = 0
    first_restart_time: datetime | None = None
    last_restart_time: datetime | None = None
    first_restart_s: float | None = None
    last_restart_s: float | None = None
    end_time: datetime | None = None
    total_s: float | None = None
    guests: tuple[FailoverGuest, ...] = ()
    guests_left_out: int = 0
    kind: FailoverKind = FailoverKind.FAILURE
    operation: str = ""

    @property
    def name(self) -> str:
        """`failovers/{failover}`."""
        return f"failovers/{self.id}"
