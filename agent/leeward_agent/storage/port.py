"""What the agent asks of a pool. Implemented over a directory and in memory; one contract suite holds both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leeward.agent.types import PoolInventory, PoolReport
from leeward_agent.storage.port_disks import DiskStore, MemoryStore, SnapshotStore, TransferStore
from leeward_agent.storage.port_images import ImageStore


@dataclass(frozen=True, slots=True)
class RunEpochRecord:
    """Who may run a guest: kept beside its disk. The highest epoch wins, for ever."""

    epoch: int
    node: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A node's storage heartbeat: which boot and agent wrote it, and a number that grows with each beat.

    No two beats of a node are equal: `agent_id` is new at each start of the agent, `sequence` grows from there. An
    observer that sees an unchanged slot therefore knows that no beat was written.
    """

    node: str
    boot_id: str
    agent_id: str
    sequence: int
    guests: tuple[str, ...] = ()  # uids of the guests running when it was written, as many as fit the slot
    acknowledged: str = ""  # The poison pill in this pool, once none of its guests is left.


@dataclass(frozen=True, slots=True)
class Pill:
    """A poison pill: what the controllers leave in a pool for one boot of a node that they cannot reach."""

    node: str
    boot_id: str
    pill_id: str


class Pool(ImageStore, DiskStore, MemoryStore, SnapshotStore, TransferStore, Protocol):
    """A place for disks. All methods raise StorageError when the pool cannot be reached, within a bounded time.

    Uids, digests and node names are checked, and InvalidArgument raised, before anything is touched.
    """

    @property
    def pool_id(self) -> str:
        """The id in the pool's own marker."""
        ...

    @property
    def root(self) -> Path:
        """Where the pool is mounted on this host; what the guard looks for in QEMU's arguments."""
        ...

    @property
    def is_network(self) -> bool:
        """Whether the file system is of a kind that other hosts can mount.

        Such a pool counts as shared even before another node was ever seen in it; another one counts as shared once a
        slot of another node is in it.
        """
        ...

    async def report(self) -> PoolReport:
        """Capacity and health. Never raises: a pool that cannot be reached reports `healthy=False`.

        `shared` is left False: who else has the pool, the heartbeats know.
        """
        ...

    async def inventory(self) -> PoolInventory:
        """All that is here now: images in order of digest, guests in order of uid; ages by the pool's own clock.

        An image's age counts from when it came or was last asked for, a guest's from the last file made or removed.
        """
        ...

    async def read_run_epoch(self, uid: str) -> RunEpochRecord | None:
        """The right to run as recorded beside the disk; None when none was written."""
        ...

    async def write_run_epoch(self, uid: str, record: RunEpochRecord) -> None:
        """Record the right to run, durably.

        Raises StaleRunEpoch when a higher epoch, or the same one of another node, is there.
        """
        ...

    async def write_slot(self, slot: Slot) -> None:
        """Write this node's heartbeat to stable storage."""
        ...

    async def read_slots(self) -> tuple[Slot, ...]:
        """All nodes' heartbeats as they are on storage now, never from a stale cache.

        A slot that cannot be understood is left out: nothing is known of it then.
        """
        ...

    async def write_pill(self, pill: Pill) -> None:
        """Leave a poison pill for a node, on stable storage, in the place of any that is there."""
        ...

    async def read_pill(self, node: str) -> Pill | None:
        """The pill that was left for a node, as it is on storage now."""
        ...

    async def withdraw_pill(self, node: str, *, pill_id: str) -> None:
        """Take a node's pill away, if it is this one; no error when there is none."""
        ...

    async def close(self) -> None:
        """Let go of the pool. Nothing in it changes."""
        ...
