"""A node: a host with an agent, what the controllers hold of it, and the evidence that it can no longer run guests."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property

from leeward.agent.types import NodeReport


class NodeCondition(StrEnum):
    """What the controllers make of a node.

    CORDONED, DRAINING and MAINTENANCE are never kept: they are how a READY node is shown by its duty.
    """

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


class NodeDuty(StrEnum):
    """What operators want of a node. Kept beside its condition, so that neither is lost while the other changes."""

    IN_SERVICE = "IN_SERVICE"  # It takes new instances.
    CORDONED = "CORDONED"  # It keeps what it has and takes nothing new.
    DRAINING = "DRAINING"  # It is being emptied.
    MAINTENANCE = "MAINTENANCE"  # It was emptied, for work on it.


class ProofKind(StrEnum):
    """How it is known that a node can no longer run a guest."""

    POWER_OFF = "POWER_OFF"  # The BMC confirmed that the power is off.
    POISON_PILL = "POISON_PILL"  # The agent stopped its guests on request and acknowledged in its slot.
    SILENCE = "SILENCE"  # Both heartbeats silent beyond TTL, guard and margin, on a node whose guard was armed.
    NEW_BOOT = "NEW_BOOT"  # The node came back with a new boot id: what ran in the old boot is gone.
    ATTESTATION = "ATTESTATION"  # An operator said so.

    @property
    def speaks_of_own_disks(self) -> bool:
        """Whether it also tells that guests on disks of the node's own have ended. The guard kills no such."""
        return self not in (ProofKind.SILENCE, ProofKind.POISON_PILL)


@dataclass(frozen=True, slots=True)
class FenceProof:
    """The persisted evidence that one boot of a node is over. Written before the first guest is started elsewhere."""

    node: str
    boot_id: str
    kind: ProofKind
    evidence: str
    time: datetime
    observed_by: str


_MOST_MOVED_AWAY = 1000


@dataclass(frozen=True, slots=True)
class MovedAway:
    """An instance that a drain moved off a node, or, with `restarted_on`, that was restarted there when it died."""

    instance: str
    instance_uid: str
    restarted_on: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """What the controllers keep of a node. `report` is the last one seen; the live one is the heartbeat itself.

    `moved_away` is what has left it by a drain or a failover since it was last uncordoned.
    """

    node: str
    uid: str
    condition: NodeCondition
    reason: str
    report: NodeReport
    create_time: datetime
    condition_time: datetime
    duty: NodeDuty = NodeDuty.IN_SERVICE
    cordon_reason: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    current_operation: str = ""
    moved_away: tuple[MovedAway, ...] = ()

    @property
    def name(self) -> str:
        """`nodes/{node}`."""
        return f"nodes/{self.node}"

    @property
    def cordoned(self) -> bool:
        """Whether new instances are kept away."""
        return self.duty is not NodeDuty.IN_SERVICE

    def remembering(self, away: Iterable[MovedAway]) -> "Node":
        """With what has left it besides, each instance once; only the last ones when there are very many."""
        known = {each.instance_uid: each for each in (*self.moved_away, *away)}
        return replace(self, moved_away=tuple(known.values())[-_MOST_MOVED_AWAY:])

    @property
    def shown_condition(self) -> NodeCondition:
        """The condition told to clients: that of a node which is well says what operators want of it."""
        if self.condition is not NodeCondition.READY or self.duty is NodeDuty.IN_SERVICE:
            return self.condition
        return NodeCondition[self.duty.name]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one instance holds of a node: `disk_gib` is all its disks together, in the pool `pool_id`."""

    instance_uid: str
    instance: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    pool_id: str = ""

    def covers(self, other: "Reservation") -> bool:
        """Whether `other` asks for no more than this, of the same pool."""
        return (
            self.pool_id == other.pool_id
            and self.vcpus >= other.vcpus
            and self.memory_mib >= other.memory_mib
            and self.disk_gib >= other.disk_gib
        )


@dataclass(frozen=True)
class NodeAllocation:
    """Everything reserved on one node.

    The sums are made once: every placement looks at them on every node. (Slots would leave no room to keep them.)
    """

    node: str
    reservations: tuple[Reservation, ...] = ()

    @cached_property
    def vcpus(self) -> int:
        """Processors reserved."""
        return sum(r.vcpus for r in self.reservations)

    @cached_property
    def memory_mib(self) -> int:
        """Memory reserved, in MiB."""
        return sum(r.memory_mib for r in self.reservations)

    @cached_property
    def disk_gib_by_pool(self) -> Mapping[str, int]:
        """Disk reserved in each pool, in GiB."""
        sums: Counter[str] = Counter()
        for each in self.reservations:
            sums[each.pool_id] += each.disk_gib
        return sums

    @cached_property
    def _by_instance(self) -> Mapping[str, Reservation]:
        return {each.instance_uid: each for each in self.reservations}

    def of(self, instance_uid: str) -> Reservation | None:
        """What this instance holds here."""
        return self._by_instance.get(instance_uid)

    def holds(self, instance_uid: str) -> bool:
        """Whether this instance has a reservation here."""
        return instance_uid in self._by_instance

    def beside(self, instance_uid: str) -> tuple[int, int]:
        """Processors, and memory in MiB, reserved for all but this instance."""
        own = self.of(instance_uid)
        return (self.vcpus - own.vcpus, self.memory_mib - own.memory_mib) if own else (self.vcpus, self.memory_mib)

    def disk_gib_beside(self, instance_uid: str, pool_id: str) -> int:
        """Disk in a pool, in GiB, reserved for all but this instance."""
        own = self.of(instance_uid)
        in_pool = self.disk_gib_by_pool.get(pool_id, 0)
        return in_pool - own.disk_gib if own is not None and own.pool_id == pool_id else in_pool

    def with_reservation(self, reservation: Reservation) -> "NodeAllocation":
        """The same with this reservation, replacing an earlier one of the same instance."""
        others = tuple(r for r in self.reservations if r.instance_uid != reservation.instance_uid)
        return NodeAllocation(self.node, (*others, reservation))

    def without(self, instance_uid: str) -> "NodeAllocation":
        """The same without what this instance holds."""
        return NodeAllocation(self.node, tuple(r for r in self.reservations if r.instance_uid != instance_uid))
