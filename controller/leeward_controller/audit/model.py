"""What an audit looks at, and what it can find. All values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from leeward.agent.types import Inventory, PoolInventory
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node, NodeAllocation, NodeCondition, Reservation
from leeward_controller.domain.operation import Operation

OLD_ENOUGH_S = 3600.0
"""How long a file must have lain in a pool before it is deleted as nobody's: what makes it may be about to say so."""


class FindingKind(StrEnum):
    """What kind of drift it is."""

    RESERVATION_OF_NO_INSTANCE = "RESERVATION_OF_NO_INSTANCE"  # Room is held on a node for what does not exist.
    RESERVATION_ON_WRONG_NODE = "RESERVATION_ON_WRONG_NODE"  # Room is held where the instance is not.
    RESERVATION_OF_WRONG_SIZE = "RESERVATION_OF_WRONG_SIZE"  # More or less room is held than the instance has.
    INSTANCE_WITHOUT_RESERVATION = "INSTANCE_WITHOUT_RESERVATION"  # No room is held where the instance is.
    GROUP_MEMBERSHIP = "GROUP_MEMBERSHIP"  # A group has other members, or has them elsewhere, than the instances say.
    OPERATION_STILL_CURRENT = "OPERATION_STILL_CURRENT"  # What is recorded as going on has ended, or does not exist.
    GUEST_OF_NO_INSTANCE = "GUEST_OF_NO_INSTANCE"  # A host knows a guest of which there is no record.
    GUEST_ON_WRONG_NODE = "GUEST_ON_WRONG_NODE"  # A guest is in memory on a host that its record does not name.
    DEFINITION_ON_WRONG_NODE = "DEFINITION_ON_WRONG_NODE"  # A guest is defined on a host that its record does not name.
    GUEST_RUNS_UNWANTED = "GUEST_RUNS_UNWANTED"  # A guest is in memory although its instance is not meant to run.
    GUEST_NOT_RUNNING = "GUEST_NOT_RUNNING"  # A guest is not in memory although its instance is meant to run.
    SOCKET_OF_NO_GUEST = "SOCKET_OF_NO_GUEST"  # A console socket of a guest that is not on that host.
    CONSOLE_LOG_OF_NO_GUEST = "CONSOLE_LOG_OF_NO_GUEST"  # A console log of a guest that is not on that host.
    DISK_OF_NO_INSTANCE = "DISK_OF_NO_INSTANCE"  # A folder with disks of which there is no record.
    DISK_IN_WRONG_POOL = "DISK_IN_WRONG_POOL"  # A folder with disks in another pool than the instance's.
    INSTANCE_WITHOUT_DISK = "INSTANCE_WITHOUT_DISK"  # The root disk is not in the instance's pool.
    INSTANCE_WITHOUT_MEMORY = "INSTANCE_WITHOUT_MEMORY"  # A suspended instance's memory is not beside its disk.
    LEFTOVER_FILE = "LEFTOVER_FILE"  # A file that belongs to a state that the instance is not in.
    RUN_EPOCH_AHEAD = "RUN_EPOCH_AHEAD"  # The right to run beside the disk is not the one that is recorded.
    IMAGE_FILE_OF_NO_IMAGE = "IMAGE_FILE_OF_NO_IMAGE"  # An image file that no record names and no disk is based on.
    IMAGE_WITHOUT_FILE = "IMAGE_WITHOUT_FILE"  # An image is not in a pool where its record says that it is.


class DiskRemnant(StrEnum):
    """A file beside a disk that can be let go by a call of its own."""

    KEPT_ROOT_DISK = "KEPT_ROOT_DISK"  # What a resize kept.
    RESCUE_DISK = "RESCUE_DISK"  # What a rescue booted from.
    MEMORY = "MEMORY"  # What a suspend wrote.


@dataclass(frozen=True, slots=True)
class SetReservation:
    """Hold exactly this on a node for an instance; None: nothing."""

    node: str
    instance_uid: str
    reservation: Reservation | None

    def __str__(self) -> str:
        return "free what is held" if self.reservation is None else "hold what the instance has"


@dataclass(frozen=True, slots=True)
class SetGroup:
    """Make the group's members what the instances say."""

    group: Group

    def __str__(self) -> str:
        return "make the group's members what the instances say"


@dataclass(frozen=True, slots=True)
class ClearOperation:
    """Record that nothing is going on with an instance or a node."""

    subject: str

    def __str__(self) -> str:
        return "record that nothing is going on with it"


@dataclass(frozen=True, slots=True)
class RemoveGuest:
    """End the guest on a host, and forget it there."""

    node: str
    uid: str

    def __str__(self) -> str:
        return f"end it on nodes/{self.node} and forget it there"


@dataclass(frozen=True, slots=True)
class DeleteDisk:
    """Delete a guest's folder in a pool."""

    node: str
    pool_id: str
    uid: str
    run_epoch: int
    age_s: float

    def __str__(self) -> str:
        return "delete the folder"


@dataclass(frozen=True, slots=True)
class DropRemnant:
    """Delete a file beside an instance's disk."""

    node: str
    instance: str
    remnant: DiskRemnant

    def __str__(self) -> str:
        return "delete the file"


@dataclass(frozen=True, slots=True)
class RaiseRunEpoch:
    """Record a run epoch by which the instance can be started again."""

    instance: str
    run_epoch: int

    def __str__(self) -> str:
        return f"raise the recorded run epoch to {self.run_epoch}"


@dataclass(frozen=True, slots=True)
class DeleteImageFile:
    """Delete an image file in a pool."""

    node: str
    pool_id: str
    digest: str
    age_s: float

    def __str__(self) -> str:
        return "delete the file"


Repair = (
    SetReservation
    | SetGroup
    | ClearOperation
    | RemoveGuest
    | DeleteDisk
    | DropRemnant
    | RaiseRunEpoch
    | DeleteImageFile
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One drift: what it is about, what is wrong in words, and what would mend it.

    Where no `repair` can be made by itself, `advice` says what an operator does.
    """

    kind: FindingKind
    subject: str
    explanation: str
    repair: Repair | None = None
    advice: str = ""

    @property
    def remedy(self) -> str:
        """What would mend it, in words."""
        return self.advice if self.repair is None else str(self.repair)

    @property
    def must_wait(self) -> str:
        """Why it is not repaired yet; empty when it can be."""
        match self.repair:
            case DeleteDisk(age_s=age_s) | DeleteImageFile(age_s=age_s) if age_s < OLD_ENOUGH_S:
                return f"it is deleted only when it is older than {OLD_ENOUGH_S / 60:.0f} minutes"
        return ""


@dataclass(frozen=True, slots=True)
class HeldPool:
    """A pool as it was found, and the nodes that have it."""

    inventory: PoolInventory
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """The cluster at one revision of the store, and what its hosts held just before.

    `busy` are the uids of instances that an operation is working on, or that changed while the hosts were asked: what
    is seen of them is on its way to something else. So it is with the images named by `changed_images`. `unreached` are
    the nodes that could not be asked, and why.
    """

    revision: int
    instances: Mapping[str, Instance] = field(default_factory=dict)  # By uid.
    operations: Mapping[str, Operation] = field(default_factory=dict)  # By resource name.
    allocations: tuple[NodeAllocation, ...] = ()
    images: tuple[Image, ...] = ()
    groups: tuple[Group, ...] = ()
    nodes: tuple[Node, ...] = ()
    inventories: Mapping[str, Inventory] = field(default_factory=dict)  # By node.
    unreached: Mapping[str, str] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    changed_images: frozenset[str] = frozenset()

    def settled(self) -> list[Instance]:
        """The instances that nothing is going on with, by name."""
        return sorted((i for uid, i in self.instances.items() if uid not in self.busy), key=lambda i: i.name)

    def is_quarantined(self, node: str) -> bool:
        """Whether a node came back after its instances were restarted elsewhere: what it holds is kept."""
        return any(each.node == node and each.condition is NodeCondition.QUARANTINED for each in self.nodes)

    def keeping(self, finding: Finding, *nodes: str) -> Finding:
        """The finding without its repair, where that would take something from nodes that are all in quarantine."""
        if finding.repair is None or not all(self.is_quarantined(node) for node in nodes):
            return finding
        return replace(finding, repair=None, advice="uncordon the node first: what a node in quarantine holds is kept")

    def pools(self) -> dict[str, HeldPool]:
        """The pools by id; a shared one as the first node by name found it."""
        found: dict[str, HeldPool] = {}
        for node, inventory in sorted(self.inventories.items()):
            for pool in inventory.pools:
                known = found.get(pool.pool_id)
                first, nodes = (pool, ()) if known is None else (known.inventory, known.nodes)
                found[pool.pool_id] = HeldPool(first, (*nodes, node))
        return found
