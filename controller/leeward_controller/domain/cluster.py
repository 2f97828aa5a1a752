"""Records about the control plane itself."""

from dataclasses import dataclass
from datetime import datetime

from leeward_controller.domain.operation import StepRecord


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller replica, as it announces itself under its own lease."""

    controller: str
    address: str
    version: str
    start_time: datetime
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Brake:
    """Why automatic evacuation is paused; released by an operator, or by the cause going away."""

    reason: str
    nodes: tuple[str, ...]
    time: datetime


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
