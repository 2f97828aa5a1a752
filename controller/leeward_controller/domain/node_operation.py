"""What operations on nodes are asked for, and what those that move instances remember of each."""

from dataclasses import dataclass
from enum import StrEnum

from leeward_controller.domain.node import MovedAway, NodeDuty

DRAIN_LABEL = "leeward.dev/drain"
"""The label by which an instance says how it wants to be drained: a value of DrainPolicy."""


DRILL_REASON = "its failover is rehearsed"
"""Why a node takes nothing new while its guests leave it in a drill, unless somebody else has said why."""


class DrainPolicy(StrEnum):
    """How an instance wants to be drained; the first is the default."""

    LIVE = "live"  # Live, when it is in memory.
    COLD = "cold"  # By stopping it here and starting it there.
    STAY = "stay"  # Not at all: it rather goes down with its node.


class OnFailure(StrEnum):
    """What a drain does when an instance cannot be moved."""

    CONTINUE = "CONTINUE"  # Go on with the others, and fail in the end.
    STOP = "STOP"  # Begin no other move, and fail when those under way have ended.
    WAIT = "WAIT"  # Go on with the others, and try it again and again.


class MovePhase(StrEnum):
    """Where one instance stands that an operation on a node moves."""

    WAITING = "WAITING"  # Its turn has not come, or it waits to be tried again.
    MOVING = "MOVING"  # It is being moved by an operation of its own.
    MOVED = "MOVED"  # It is where it shall be, or has been deleted.
    STAYS = "STAYS"  # It is left where it is, as its label asks.
    FAILED = "FAILED"  # It could not be moved.


@dataclass(frozen=True, slots=True)
class Move:
    """One instance that an operation on a node moves. `operation` is the one that does, or did last."""

    instance: str
    instance_uid: str
    phase: MovePhase = MovePhase.WAITING
    operation: str = ""
    attempt: int = 0
    percent: int = 0
    target_node: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far an operation is that moves the instances of a node."""

    moves: tuple[Move, ...]

    def count(self, phase: MovePhase) -> int:
        """How many stand there."""
        return sum(1 for move in self.moves if move.phase is phase)

    def is_behind(self, other: "DrainProgress") -> bool:
        """Whether this was told before `other`: something is where it shall be there that is not here."""
        moved = {move.instance for move in self.moves if move.phase is MovePhase.MOVED}
        return any(move.phase is MovePhase.MOVED and move.instance not in moved for move in other.moves)

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        if not self.moves:
            return 0.0
        return sum(_share(move) for move in self.moves) / len(self.moves)


def _share(move: Move) -> float:
    return move.percent / 100 if move.phase is MovePhase.MOVING else float(move.phase is not MovePhase.WAITING)


@dataclass(frozen=True, slots=True)
class DrainNodeArguments:
    """Drain: how many at a time, how often a move is tried again, and how it ends.

    The duty that the node had before is what it goes back to when the drain is cancelled.
    """

    parallelism: int = 2
    retries: int = 2
    on_failure: OnFailure = OnFailure.CONTINUE
    enter_maintenance: bool = True
    reason: str = ""
    duty_before: NodeDuty = NodeDuty.IN_SERVICE
    cordon_reason_before: str = ""


@dataclass(frozen=True, slots=True)
class BringBackArguments:
    """Bring back: what was moved away, how many at a time, and how often a move is tried again."""

    instances: tuple[MovedAway, ...] = ()
    parallelism: int = 2
    retries: int = 2


@dataclass(frozen=True, slots=True)
class DrillMove:
    """Where failover would restart an instance; `node` is empty when it would find no place, for `reason`."""

    instance: str
    instance_uid: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrillNodeArguments:
    """Drill: where each guest is to go, how many instances take no part, and how many are moved at a time.

    The boot is told for the record alone.
    """

    boot_id: str
    placements: tuple[DrillMove, ...] = ()
    left_alone: int = 0
    parallelism: int = 2


@dataclass(frozen=True, slots=True)
class FenceNodeArguments:
    """Fence: the boot that shall be over, and whether its power is cut although it is alive."""

    boot_id: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class RemoveNodeArguments:
    """Remove has no arguments."""
