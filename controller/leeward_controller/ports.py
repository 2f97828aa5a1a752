"""What the controller's core asks of its surroundings. Adapters fulfil these; only `main.py` builds adapters."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from leeward.agent.api import AgentApi
from leeward.agent.types import NodeReport
from leeward.clock import Clock, Ids, Rng
from leeward.store.port import Store

__all__ = ["AgentApi", "Agents", "Clock", "Codec", "Fence", "FenceOutcome", "Ids", "Rng", "Store"]

T = TypeVar("T")


class Codec(Protocol):
    """Turns records into bytes and back. `write_id` makes each write distinguishable from any other."""

    def encode(self, value: object, *, write_id: str) -> bytes:
        """The bytes of a record."""
        ...

    def decode(self, kind: type[T], data: bytes) -> T:
        """The record in these bytes. Raises DataLoss when they are not one of `kind`."""
        ...

    def write_id(self, data: bytes) -> str:
        """The id of the write that made these bytes."""
        ...

    def decode_report(self, data: bytes) -> NodeReport:
        """The value of a heartbeat key. Raises DataLoss."""
        ...


class Agents(Protocol):
    """Finds a node's agent."""

    def at(self, *, node: str, address: str) -> AgentApi:
        """The agent of `node` at `address`; its certificate must be that node's. Calls raise AgentUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class FenceOutcome:
    """What a fence device answered: whether the power is known to be off, and the evidence in words."""

    confirmed_off: bool
    evidence: str


class Fence(Protocol):
    """Cuts a node's power through its BMC."""

    def covers(self, node: str) -> bool:
        """Whether a device is configured for this node."""
        ...

    async def power_off(self, node: str) -> FenceOutcome:
        """Cut the power and confirm it, within its own bound. Never raises for a device that fails: says so."""
        ...
