"""A node: a host with an agent, what the controllers hold of it, and the evidence that it can no longer run guests."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from leeward.agent.types import NodeReport


class NodeCondition(StrEnum):
    """What the controllers make of a node."""

    READY = "READY"  # Its heartbeat is alive and it takes new instances.
    CORDONED = "CORDONED"  # Alive; what runs goes on, nothing new is placed.
    DRAINING = "DRAINING"  # Alive; its instances are being moved away.
    MAINTENANCE = "MAINTENANCE"  # Alive and empty, for work on it.
    ISOLATED = "ISOLATED"  # Its etcd lease is lost, but its storage heartbeat beats: guests run on.
    SUSPECT = "SUSPECT"  # Its etcd lease is lost and the storage heartbeat is not yet judged.
    FENCING = "FENCING"  # Both heartbeats are lost; proofs are being sought.
    FENCED = "FENCED"  # A proof is persisted: it runs no guest of that boot any more.
    EVACUATED = "EVACUATED"  # Fenced, and none of its instances is left on it.
    QUARANTINED = "QUARANTINED"  # Back after an evacuation; nothing is placed on it until it is uncordoned.


class ProofKind(StrEnum):
    """How it is known that a node can no longer run a guest."""

    POWER_OFF = "POWER_OFF"  # The BMC confirmed that the power is off.
    POISON_PILL = "POISON_PILL"  # The agent stopped its guests on request and acknowledged in its slot.
    SILENCE = "SILENCE"  # Both heartbeats silent beyond TTL, guard and margin, on a node whose guard was armed.
    NEW_BOOT = "NEW_BOOT"  # The node came back with a new boot id: what ran in the old boot is gone.
    ATTESTATION = "ATTESTATION"  # An operator said so.


@dataclass(frozen=True, slots=True)
class FenceProof:
    """The persisted evidence that one boot of a node is over. Written before the first guest is started elsewhere."""

    node: str
    boot_id: str
    kind: ProofKind
    evidence: str
    time: datetime
    observed_by: str


@dataclass(frozen=True, slots=True)
class Node:
    """What the controllers keep of a node. `report` is the last one seen; the live one is the heartbeat itself."""

    node: str
    uid: str
    condition: NodeCondition
    reason: str
    report: NodeReport
    create_time: datetime
    condition_time: datetime
    cordoned: bool = False
    cordon_reason: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`nodes/{node}`."""
        return f"nodes/{self.node}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one instance holds of a node, and by which operation it came."""

    instance_uid: str
    instance: str
    vcpus: int
    memory_mib: int
    disk_gib: int


@dataclass(frozen=True, slots=True)
class NodeAllocation:
    """Everything reserved on one node."""

    node: str
    reservations: tuple[Reservation, ...] = ()

    @property
    def vcpus(self) -> int:
        """Processors reserved."""
        return sum(r.vcpus for r in self.reservations)

    @property
    def memory_mib(self) -> int:
        """Memory reserved, in MiB."""
        return sum(r.memory_mib for r in self.reservations)

    def beside(self, instance_uid: str) -> tuple[int, int]:
        """Processors, and memory in MiB, reserved for all but this instance."""
        vcpus = memory_mib = 0
        for each in self.reservations:
            if each.instance_uid != instance_uid:
                vcpus += each.vcpus
                memory_mib += each.memory_mib
        return vcpus, memory_mib

    def with_reservation(self, reservation: Reservation) -> "NodeAllocation":
        """The same with this reservation, replacing an earlier one of the same instance."""
        others = tuple(r for r in self.reservations if r.instance_uid != reservation.instance_uid)
        return NodeAllocation(self.node, (*others, reservation))

    def without(self, instance_uid: str) -> "NodeAllocation":
        """The same without what this instance holds."""
        return NodeAllocation(self.node, tuple(r for r in self.reservations if r.instance_uid != instance_uid))

    def holds(self, instance_uid: str) -> bool:
        """Whether this instance has a reservation here."""
        return any(r.instance_uid == instance_uid for r in self.reservations)
