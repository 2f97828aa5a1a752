"""Records about the control plane itself."""

from dataclasses import dataclass
from datetime import datetime

from leeward_controller.domain.operation import StepRecord


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller replica, as it announces itself under its own lease.

    `lead_time` is since when it leads; only in the leader's key.
    """

    controller: str
    address: str
    version: str
    start_time: datetime
    draining: bool = False
    lead_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class BrakeRelease:
    """An operator's word that evacuation may go on although the brake's cause persists."""

    reason: str
    released_by: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Brake:
    """Why automatic evacuation is paused. It is there for as long as its cause.

    `nodes` are those that were counted as dead. `unwell` tells that its cause is that the controllers' own sight was
    not to be trusted. `time` is when it was pulled. A release holds for these nodes, and while nothing is unwell.
    """

    reason: str
    nodes: tuple[str, ...]
    time: datetime
    unwell: bool = False
    release: BrakeRelease | None = None

    @property
    def holds(self) -> bool:
        """Whether it pauses evacuation now."""
        return self.unwell or self.release is None


@dataclass(frozen=True, slots=True)
class Disarm:
    """An operator's word that nodes are neither fenced nor evacuated by themselves, until `expire_time` at the latest.

    There is one while failover is disarmed: the leader removes it when its time is up.
    """

    reason: str
    disarmed_by: str
    time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class InstanceEvent:
    """One line of an instance's history."""

    instance_uid: str
    operation: str
    type: str
    requested_by: str
    outcome: str
    start_time: datetime
    end_time: datetime
    steps: tuple[StepRecord, ...] = ()
