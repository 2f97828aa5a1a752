"""What failover decides from, and what it can decide. All values; `decide` turns the one into the other."""

from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter

from leeward.agent.types import NodeReport, PoolReport
from leeward_controller.domain.cluster import Brake, Disarm
from leeward_controller.domain.node import NodeCondition, ProofKind


@dataclass(frozen=True, slots=True)
class Timing:
    """The bounds that safety rests on; docs/architecture.md derives them.

    `slot_fresh_s`: a storage heartbeat seen within it counts as beating. `margin_s` covers clock rates and scheduling.
    """

    slot_fresh_s: float = 2.5
    margin_s: float = 0.5
    retry_evacuation_s: float = 5.0
    retry_conflict_s: float = 0.2


@dataclass(frozen=True, slots=True)
class BrakePolicy:
    """When so many nodes look dead that something else is more likely wrong."""

    more_than: int = 1
    at_least_share: float = 0.4


class Isolation(StrEnum):
    """What becomes of a node that is cut off from etcd while its storage heartbeat beats."""

    KEEP = "KEEP"  # Its guests run on, unless an operator has it fenced.
    MOVE = "MOVE"  # After a while its guests are ended by poison pill and started elsewhere.


@dataclass(frozen=True, slots=True)
class IsolationPolicy:
    """When isolated nodes are left a poison pill by themselves."""

    isolation: Isolation = Isolation.KEEP
    after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Silence:
    """What observers say of a node's storage heartbeat: the shortest silence any of them measured, and by whom.

    `acknowledged` are the poison pills that it says it has taken, in any pool.
    """

    seconds: float
    boot_id: str
    observers: tuple[str, ...]
    acknowledged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One node at one moment.

    `lease_missing_s` is None while its etcd lease is alive, and negative while a new leader, who cannot know for how
    long it has been gone, still grants it a TTL.
    One `in_maintenance` was emptied for work on it, so that nobody is surprised when it goes and comes.
    `known_boot_id` is the boot in its record, `lease_boot_id` that in its heartbeat key (the known one when missing).
    `held_pill` is the poison pill that its heartbeat says it was left, `left_pill` the one that this leader left for
    the known boot; `pill_overdue` says that it should have taken one for long. `isolated_for_long` says that by policy
    it is time to, `fence_asked` that somebody has it fenced.
    `report_changed` tells that its heartbeat says something else of the same boot than its record.
    `powering_off` says that its device is being asked, or was asked lately; `power_trouble` why that failed.
    `reason` is what is told of it now. `other_boot_s` is for how long its slot has been found beating in one boot that
    is not the known one, at each look.
    `instances` counts those recorded on it; `waiting` are those of them that no running operation takes care of, told
    only once there is a proof. `idle` counts those that no evacuation is moving away; likewise.
    `held` counts the places that its allocation still holds, but for those that a resize may return to; likewise.
    """

    node: str
    condition: NodeCondition
    in_maintenance: bool
    known_boot_id: str
    lease_boot_id: str
    lease_missing_s: float | None
    report_changed: bool
    guard_armed: bool
    lease_ttl_s: float
    guard_delay_s: float
    silence: Silence | None
    proof: ProofKind | None
    instances: int
    waiting: tuple[str, ...]
    can_power_off: bool
    powering_off: bool = False
    idle: int = 0
    held: int = 0
    held_pill: str = ""
    left_pill: str = ""
    pill_overdue: bool = False
    isolated_for_long: bool = False
    fence_asked: bool = False
    power_trouble: str = ""
    reason: str = ""
    other_boot_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All nodes at one moment, and whether the controllers and the store were well for the last TTL.

    `brake` and `disarm` are as they are recorded; `disarm_left_s` is how long the latter lasts yet.
    """

    nodes: tuple[NodeSnapshot, ...]
    unregistered: tuple[str, ...]
    unwell: str
    brake: Brake | None = None
    disarm: Disarm | None = None
    disarm_left_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Register:
    """Make a record for a node that has a heartbeat and none."""

    node: str


@dataclass(frozen=True, slots=True)
class SetCondition:
    """Record what a node is now, and why. `adopt_report` also takes over what its heartbeat says of it."""

    node: str
    condition: NodeCondition
    reason: str
    adopt_report: bool = False


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """Take over into a node's record what its heartbeat says of it now."""

    node: str


@dataclass(frozen=True, slots=True)
class RecordProof:
    """Persist that a boot of a node is over."""

    node: str
    boot_id: str
    kind: ProofKind
    evidence: str


@dataclass(frozen=True, slots=True)
class ClearProof:
    """Drop the proof for a boot that has come back and holds nothing any more."""

    node: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class PowerOff:
    """Ask the node's BMC to cut the power, as one way to a proof."""

    node: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class LeavePill:
    """Leave a poison pill for a node that cannot be reached and whose storage heartbeat beats."""

    node: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class WithdrawPill:
    """Let a node that is back run guests again."""

    node: str
    pill_id: str


@dataclass(frozen=True, slots=True)
class Evacuate:
    """Restart these instances of a fenced node elsewhere."""

    node: str
    boot_id: str
    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrimAllocation:
    """Free what an emptied node's allocation still holds."""

    node: str


@dataclass(frozen=True, slots=True)
class PullBrake:
    """Pause automatic evacuation, or record what pauses it now.

    `keeps_release`: an operator's release for these nodes stays.
    """

    reason: str
    nodes: tuple[str, ...]
    unwell: bool = False
    keeps_release: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseBrake:
    """Let automatic evacuation go on, because nothing is left that would pause it."""


@dataclass(frozen=True, slots=True)
class Arm:
    """End a disarm whose time is up."""

    disarm: Disarm


Decision = (
    Register
    | SetCondition
    | AdoptReport
    | RecordProof
    | ClearProof
    | PowerOff
    | LeavePill
    | WithdrawPill
    | Evacuate
    | TrimAllocation
    | PullBrake
    | ReleaseBrake
    | Arm
)


def differs(recorded: NodeReport, reported: NodeReport) -> bool:
    """Whether a report says something that failover rests on and the record does not have; free space is left out."""
    return recorded is not reported and _lasting(recorded) != _lasting(reported)


# Asked of every node in every round, so it compares attributes instead of making copies.
_of_node = attrgetter(*(each.name for each in fields(NodeReport) if each.name != "pools"))
_of_pool = attrgetter(*(each.name for each in fields(PoolReport) if each.name != "available_gib"))


def _lasting(report: NodeReport) -> tuple[object, list[object]]:
    return _of_node(report), [_of_pool(pool) for pool in report.pools]
