"""An instance: what was asked for, what it is now, and where the right to run it lies."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from leeward.agent.types import (
    CloudInit,
    DiskFormat,
    Firmware,
    GuestProbe,
    GuestSpec,
    GuestState,
    MachineType,
    Nic,
    RescueImage,
)


class InstanceState(StrEnum):
    """Where an instance stands, with Nova's meanings. What is going on is `current_operation`, never a state."""

    BUILDING = "BUILDING"  # Asked for; not yet running for the first time.
    ACTIVE = "ACTIVE"  # Its guest runs, or is meant to.
    STOPPED = "STOPPED"  # Shut down on request or by the guest; disk and place are kept.
    PAUSED = "PAUSED"  # In memory, processors halted on request.
    SUSPENDED = "SUSPENDED"  # Memory written to disk, no process.
    RESCUED = "RESCUED"  # Running a rescue image with its own disk attached beside.
    RESIZED = "RESIZED"  # Running with a new flavor; the old one is kept until confirmed.
    SHELVED = "SHELVED"  # Stopped with its disk kept as an image; its node not yet freed.
    SHELVED_OFFLOADED = "SHELVED_OFFLOADED"  # Stopped, disk kept as an image, on no node.
    SOFT_DELETED = "SOFT_DELETED"  # Deleted, but may be brought back until its retention ends.
    ERROR = "ERROR"  # An operation failed in a way that needs a decision; `fault` says which.
    DELETED = "DELETED"  # Gone; the record is a tombstone for a while.


@dataclass(frozen=True, slots=True)
class Resources:
    """What an instance takes of a node."""

    vcpus: int
    memory_mib: int
    disk_gib: int


class Storage(StrEnum):
    """Which kind of pool an instance's disks are to be in."""

    ANY = "ANY"  # A shared pool where there is one, else a local one.
    SHARED = "SHARED"  # A pool that several nodes have: the instance survives its node.
    LOCAL = "LOCAL"  # A pool of its node alone.


class RestartPriority(StrEnum):
    """Before or after which others an instance is started again when its node has died."""

    HIGHEST = "HIGHEST"  # Before all others: what they need to come up.
    HIGH = "HIGH"  # Before most.
    MEDIUM = "MEDIUM"  # As most are.
    LOW = "LOW"  # After most.
    LOWEST = "LOWEST"  # After all others.

    @classmethod
    def _missing_(cls, value: object) -> "RestartPriority | None":
        """Records that are older than priorities have none written."""
        return cls.MEDIUM if value == "" else None

    @property
    def tier(self) -> int:
        """0 comes first."""
        return list(RestartPriority).index(self)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What tells that a restarted instance is ready, and for how long those that need it wait for that."""

    probe: GuestProbe
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class InstanceLock:
    """Why an instance refuses changes by others than admins, who said so, and since when."""

    reason: str
    locker: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Resize:
    """What a resize left behind until it is confirmed or reverted: all that the instance had before."""

    flavor: str
    resources: Resources
    node: str
    pool_id: str
    state_before: InstanceState
    confirm_time: datetime | None = None  # When it confirms by itself.


@dataclass(frozen=True, slots=True)
class Rescue:
    """The image that runs instead of the instance's own disk, and the state it goes back to."""

    image: str
    digest: str
    format: DiskFormat
    state_before: InstanceState


@dataclass(frozen=True, slots=True)
class Shelf:
    """The image that holds a shelved instance's disk, and when its node is freed (None: it is)."""

    image: str
    digest: str
    format: DiskFormat
    offload_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """The state that an undelete goes back to, and when the instance goes for good."""

    state_before: InstanceState
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """Labels that a node must have, and labels that one is preferred for."""

    required_labels: dict[str, str] = field(default_factory=dict)
    preferred_labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance. `node` is empty while it has no place; `run_epoch` grows whenever the right to run moves. Without
    `readiness` it counts as restarted as soon as its guest runs.

    `pool_id` is chosen with its first place. `resize`, `rescue`, `shelf` and `deletion` are set in the states that they
    explain, and in no other.
    """

    name: str
    uid: str
    state: InstanceState
    flavor: str
    resources: Resources
    image: str
    image_digest: str
    image_format: DiskFormat
    pool_id: str
    nics: tuple[Nic, ...]
    create_time: datetime
    update_time: datetime
    created_by: str
    node: str = ""
    run_epoch: int = 0
    current_operation: str = ""
    fault: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    restart_on_failure: bool = True
    last_boot_time: datetime | None = None
    lock: InstanceLock | None = None
    storage: Storage = Storage.ANY
    data_disks_gib: tuple[int, ...] = ()
    machine: MachineType = MachineType.Q35
    firmware: Firmware = Firmware.BIOS
    cpu_model: str = ""
    cloud_init: CloudInit | None = None
    group: str = ""
    placement: PlacementRules = field(default_factory=PlacementRules)
    resize: Resize | None = None
    rescue: Rescue | None = None
    shelf: Shelf | None = None
    deletion: Deletion | None = None
    restart_priority: RestartPriority = RestartPriority.MEDIUM
    readiness: Readiness | None = None

    @property
    def project(self) -> str:
        """The project id in the name."""
        return self.name.split("/")[1]

    @property
    def holding_nodes(self) -> frozenset[str]:
        """The node ids where room is held for it: where it is and, until its resize is ended, where it was before."""
        return frozenset({self.node, self.resize.node if self.resize else ""} - {""})

    @property
    def wanted_guest(self) -> GuestState:
        """What its guest is meant to be doing: RUNNING, PAUSED, or STOPPED."""
        state = self.resize.state_before if self.state is InstanceState.RESIZED and self.resize else self.state
        if state in (InstanceState.ACTIVE, InstanceState.RESCUED):
            return GuestState.RUNNING
        return GuestState.PAUSED if state is InstanceState.PAUSED else GuestState.STOPPED

    def guest_spec(self, *, run_epoch: int | None = None) -> GuestSpec:
        """What an agent needs to run it, with this run epoch (default: the recorded one)."""
        return GuestSpec(
            uid=self.uid,
            name=self.name,
            vcpus=self.resources.vcpus,
            memory_mib=self.resources.memory_mib,
            disk_gib=self.resources.disk_gib,
            pool_id=self.pool_id,
            image_digest=self.image_digest,
            image_format=self.image_format,
            run_epoch=self.run_epoch if run_epoch is None else run_epoch,
            nics=self.nics,
            data_disks_gib=self.data_disks_gib,
            machine=self.machine,
            firmware=self.firmware,
            cpu_model=self.cpu_model,
            cloud_init=self.cloud_init,
            rescue=RescueImage(self.rescue.digest, self.rescue.format) if self.rescue else None,
        )
