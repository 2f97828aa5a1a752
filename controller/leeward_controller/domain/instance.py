"""An instance: what was asked for, what it is now, and where the right to run it lies."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from leeward.agent.types import DiskFormat, GuestSpec, Nic


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


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance. `node` is empty while it has no place; `run_epoch` grows whenever the right to run moves."""

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

    @property
    def project(self) -> str:
        """The project id in the name."""
        return self.name.split("/")[1]

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
        )
