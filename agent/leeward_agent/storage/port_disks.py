"""What the agent asks of a pool about guests' disks. Part of `leeward_agent.storage.port.Pool`.

Each method that changes something may be cut anywhere, the process killed or the power lost, and be repeated: nothing
half-made ever has the name of the real thing, and what a cut left behind goes with the repeat or with `delete_disk`.
`operation` is the name of the operation that asks: what is done once for it is known by that name.
"""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from leeward.agent.types import GuestSpec, SnapshotFile
from leeward_agent.domain.guest_files import GuestDisks

ReadDisk: TypeAlias = Callable[[str, int], AsyncGenerator[bytes, None]]
"""Reads one of a guest's files in another pool, from an offset; the name empty: their list."""


class DiskStore(Protocol):
    """Making, changing and deleting disks, of guests that have no process anywhere."""

    async def create_disk(self, spec: GuestSpec) -> None:
        """Make what is missing of the guest's disks; durable when answered.

        The copy-on-write root disk, `disk_gib` large (as large as the image when that is 0), data disks, the seed disk
        when `cloud_init` is set, the rescue disk when `rescue` is set, the variables of UEFI. Raises NotFound when an
        image is absent, FailedPrecondition (reason DISK_TOO_SMALL) when `disk_gib` is smaller than the image's virtual
        size, FailedPrecondition (reason NO_FIRMWARE) when the host has no UEFI. A root disk that was not there before
        is not there after a failure.
        """
        ...

    async def drop_rescue_disk(self, uid: str) -> None:
        """Delete the rescue disk. No error when absent."""
        ...

    async def replace_disk(self, spec: GuestSpec, *, operation: str) -> None:
        """Make a new root disk over the spec's image in the place of the old one; the seed is made anew with it.

        Once for each operation. The old one is there until the new one is whole. Raises as `create_disk`.
        """
        ...

    async def resize_disk(self, spec: GuestSpec, *, operation: str) -> None:
        """Keep the root disk aside, and put a copy of it that is `disk_gib` large in its place.

        Once for each operation. Raises NotFound (no root disk), FailedPrecondition: reason DISK_WOULD_SHRINK, or
        RESIZE_PENDING while another resize's disk is kept. Raises StorageError (reason POOL_FULL).
        """
        ...

    async def confirm_disk(self, uid: str) -> None:
        """Delete the root disk that was kept aside. No error when there is none."""
        ...

    async def revert_disk(self, uid: str) -> None:
        """Put the root disk that was kept aside in its place again. No error when there is none."""
        ...

    async def delete_disk(self, uid: str) -> None:
        """Delete all that the pool holds for the guest. No error when absent."""
        ...

    async def has_disk(self, uid: str) -> bool:
        """Whether the guest's root disk is here."""
        ...

    def disk_path(self, uid: str) -> Path:
        """Where the guest's root disk is on this host."""
        ...

    def rescue_path(self, uid: str) -> Path:
        """Where the guest's rescue disk is, or would be."""
        ...

    def disks(self, spec: GuestSpec) -> GuestDisks:
        """Where the disks that the spec names are on this host; whether they are there is not looked at."""
        ...


class MemoryStore(Protocol):
    """The memory files of suspended guests, which the hypervisor writes and reads."""

    def memory_path(self, uid: str) -> Path:
        """Where the guest's memory is, or would be."""
        ...

    async def new_memory(self, uid: str) -> Path:
        """A path with no file at it, for the hypervisor to write the memory to."""
        ...

    async def keep_memory(self, uid: str) -> bool:
        """Give the memory that was written its name, durably. Answers whether there is one now.

        One that the hypervisor had not written to its end is deleted. Repeating it is no error.
        """
        ...

    async def has_memory(self, uid: str) -> bool:
        """Whether the guest's memory is here, whole."""
        ...

    async def discard_memory(self, uid: str) -> None:
        """Delete it, durably, and what was begun of one. No error when absent."""
        ...


class SnapshotStore(Protocol):
    """Images made of root disks. One that was published is remembered by its operation."""

    async def known_snapshot(self, uid: str, *, operation: str) -> SnapshotFile | None:
        """What this operation has published already."""
        ...

    async def new_snapshot(self, uid: str) -> Path:
        """A path with no file at it, for the hypervisor to write a standalone qcow2 to; an earlier one is removed.

        Raises StorageError (reason POOL_FULL) when the disk's own clusters would not fit.
        """
        ...

    async def keep_snapshot(self, uid: str, *, operation: str, quiesced: bool) -> SnapshotFile:
        """Make an image in this pool of the file at that path. Raises StorageError when it is none."""
        ...

    async def drop_snapshot(self, uid: str) -> None:
        """Remove what is at that path. No error when absent."""
        ...

    async def snapshot_disk(self, uid: str, *, operation: str) -> SnapshotFile:
        """The same for a guest without a process, all at once. Raises NotFound, StorageError."""
        ...


class TransferStore(Protocol):
    """A stopped guest's disks on their way from one pool to another."""

    def read_disk(self, uid: str, *, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        """One of the guest's files from `offset`, in chunks of at most 1 MiB.

        `file` empty: the list of them, as `leeward_agent.storage.listing` writes it. Raises NotFound, InvalidArgument
        (no such kind of file).
        """
        ...

    async def pull_disk(self, spec: GuestSpec, *, operation: str, read: ReadDisk) -> None:
        """Have all of the guest's files here; whole and verified or not at all, resumed where it was cut.

        Once for each operation: `read` is not called when it has been done. Raises NotFound (the image that a disk is
        based on is not here), FailedPrecondition (reason DISK_EXISTS) when another root disk is here, StorageError
        (what came is not what was listed; no room), and what `read` raises.
        """
        ...
