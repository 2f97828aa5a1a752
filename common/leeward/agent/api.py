"""The port between controllers and an agent. The gRPC client and the agent's own core both fulfil it.

Every mutating call carries a `Caller`. It may be repeated: it observes first, acts only on what is missing, and
answers what is true afterwards. It raises StaleClaim when one by a newer revision has been seen for the same guest.
Errors of transport: AgentUnavailable (the agent did not get the call), AgentIndefinite (it may have acted).
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestProbe,
    GuestSpec,
    GuestStatus,
    ImageFile,
    Inventory,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    PoolSource,
    RebootMode,
    SlotObservation,
    SnapshotFile,
)


class AgentApi(Protocol):
    """One host's agent."""

    async def describe_node(self) -> NodeReport:
        """The host as it is now."""
        ...

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        """Every guest that Leeward defined on this host, asked from the hypervisor, in order of uid."""
        ...

    async def get_guest(self, *, uid: str) -> GuestStatus:
        """One guest, asked from the hypervisor; state ABSENT when the host does not know it."""
        ...

    def watch_guests(self) -> AsyncGenerator[GuestStatus, None]:
        """The state of every guest now, then each change as the hypervisor reports it, until closed."""
        ...

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        """The storage heartbeats of all nodes in all pools of this host, as seen from here."""
        ...

    async def leave_pill(self, *, node: str, boot_id: str, pill_id: str) -> None:
        """Leave a poison pill for another node in the shared pools of this host.

        That node's agent finds it, if it still reaches one of them, sees to it that none of its guests on shared pools
        is left, and acknowledges it in its slot. Raises InvalidArgument (this node itself), StorageError (nowhere).
        """
        ...

    async def withdraw_pill(self, *, pill_id: str) -> None:
        """Take this node's own pill away, so that it may run guests again. Another pill stays. Raises StorageError."""
        ...

    async def store_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        """Keep an image in a pool under its digest; it appears whole or not at all, and storing it again is no error.

        Raises ImageRefused (wrong digest, wrong size, another format than declared, backing file, data file,
        encryption: all judged from the header before any tool opens the file), NotFound (pool), StorageError.
        """
        ...

    def read_image(self, *, pool_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The image's bytes from `offset`, in chunks of at most 1 MiB. Raises NotFound, StorageError."""
        ...

    async def delete_image(self, *, pool_id: str, digest: str) -> None:
        """Remove an image; no error when absent. Raises FailedPrecondition while a disk in the pool is based on it."""
        ...

    async def fetch_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, source: PoolSource
    ) -> ImageFile:
        """Have an image in a pool, from another node's pool if it is not there; resumed where it was cut, and verified.

        Raises ImageRefused, NotFound, StorageError, AgentUnavailable (of the source).
        """
        ...

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Make what is missing of the guest's disks.

        The copy-on-write root disk over its image, data disks, the seed disk when `spec.cloud_init` is set, the rescue
        disk when `spec.rescue` is set, the variables of its firmware. Raises NotFound (pool, image), StorageError, and
        Unavailable while the node could be taken for dead: what it was asked for earlier may have been taken back
        through another one since.
        """
        ...

    async def drop_rescue_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Delete the rescue disk; the guest's own are untouched. No error when absent. Refused while it runs here."""
        ...

    async def replace_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Give the guest a new root disk over `spec`'s image; the old one is gone when the new one is whole.

        Once for each operation: repeating it keeps the disk that it made. Data disks stay; the seed is made anew.
        Refused while the guest runs here.
        """
        ...

    async def resize_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Keep the root disk aside and go on with a copy of it that is `spec.disk_gib` large.

        Once for each operation. Refused while the guest runs here, and when it would shrink.
        """
        ...

    async def confirm_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Delete the root disk that `resize_disk` kept aside. No error when there is none."""
        ...

    async def revert_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Put the root disk back that `resize_disk` kept aside. No error when there is none. Refused while it runs."""
        ...

    async def pull_disk(self, caller: Caller, *, spec: GuestSpec, source: PoolSource) -> None:
        """Copy all disks of a stopped guest from another node's pool into `spec.pool_id` here.

        Resumed where it was cut, verified by digest, whole or not at all; the guest's image must be here already. No
        error when it is done. Raises AgentUnavailable (of the source), NotFound, StorageError.
        """
        ...

    def read_disk(self, *, pool_id: str, uid: str, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Bytes of one of a stopped guest's disk files from `offset`, for another agent's `pull_disk`.

        `file` empty answers the list of files as JSON, each with its size and SHA-256.
        """
        ...

    async def snapshot_disk(self, caller: Caller, *, spec: GuestSpec) -> SnapshotFile:
        """Make a standalone qcow2 image of the root disk in the same pool, as of one moment.

        A guest that runs is never stopped; its file systems are frozen for that moment when its guest agent answers.
        Once for each operation. Raises StorageError, HypervisorError, NotFound.
        """
        ...

    async def take_inventory(self) -> Inventory:
        """All that this host holds, as it is now. Raises StorageError when a pool cannot be read."""
        ...

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Write `spec.run_epoch` and this node's name beside the disk, durably.

        No error when they are there already. Raises StaleRunEpoch when a higher epoch, or the same one of another
        node, is there.
        """
        ...

    async def start_guest(self, caller: Caller, *, spec: GuestSpec, paused: bool = False) -> GuestStatus:
        """Define and start the guest, unless it is in memory already; with `paused` its processors stay halted.

        Raises StaleRunEpoch unless the epoch beside the disk is `spec.run_epoch` and names this node; then nothing was
        started. Raises HypervisorError, StorageError, NotFound (pool or disk).
        """
        ...

    async def stop_guest(self, caller: Caller, *, uid: str, grace_period_s: float) -> GuestStatus:
        """Stop it: ask by ACPI, and kill it after `grace_period_s` (0: at once). STOPPED or ABSENT afterwards."""
        ...

    async def reboot_guest(self, caller: Caller, *, uid: str, mode: RebootMode, timeout_s: float) -> RebootMode:
        """Restart a running guest; a SOFT one that does not react within `timeout_s` becomes HARD, which is answered.

        Raises FailedPrecondition when it does not run.
        """
        ...

    async def pause_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        """Halt its processors. No error when they are. Raises FailedPrecondition when it is not in memory."""
        ...

    async def suspend_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        """Write its memory beside its disk and end its process; STOPPED afterwards.

        No error when that is done. When it fails the guest runs on. Raises FailedPrecondition (neither in memory nor
        suspended), HypervisorError, StorageError.
        """
        ...

    async def wake_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        """Bring it back from its memory file, on any host with the pool, and let it run. No error when it runs.

        The file is used once: it is gone before the guest executes anything. Raises StaleRunEpoch as `start_guest`,
        NotFound (no memory file), HypervisorError.
        """
        ...

    async def discard_memory(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Delete the memory file of a suspended guest. No error when absent."""
        ...

    async def inject_nmi(self, caller: Caller, *, uid: str) -> None:
        """Send a non-maskable interrupt, by which guests write their crash dump.

        Raises FailedPrecondition unless it runs.
        """
        ...

    async def probe_guest(self, *, uid: str, probe: GuestProbe) -> str:
        """Look once, for a few seconds at most, whether a guest answers: why it does not, or nothing.

        One that does not run here does not answer.
        """
        ...

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        """Let a paused guest run on. Raises FailedPrecondition when it is neither paused nor running."""
        ...

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        """Kill it if it runs and forget its definition. Disk and console log stay. No error when absent."""
        ...

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Delete the guest's disks and what lies beside them. No error when absent. Refused while it runs here."""
        ...

    def migrate_guest(
        self, caller: Caller, *, spec: GuestSpec, destination: MigrationDestination, limits: MigrationLimits
    ) -> AsyncGenerator[MigrationProgress, None]:
        """Live-migrate to another node and tell the progress at least four times a second.

        Over shared storage, or with `limits.copies_disks` together with the disks, which the destination has made
        ready by `create_disk`.

        The last item is COMPLETED, FAILED or CANCELLED. A second call with the same operation joins the running
        migration, or gets the outcome of the finished one. Closing the iterator does not stop the migration.
        """
        ...

    async def cancel_migration(self, caller: Caller, *, uid: str) -> None:
        """Ask a running migration to stop; no error when none runs. The outcome comes from `migrate_guest`."""
        ...

    def attach_console(
        self, *, uid: str, input: AsyncIterator[bytes], take_over: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The guest's serial console: what it writes from now on; `input` goes to it. Ends when the guest stops.

        The first item is empty and tells that the console is attached; what `input` holds is read from then on only.
        One at a time: raises FailedPrecondition (reason CONSOLE_IN_USE) unless `take_over`, which ends the other.
        Raises NotFound, FailedPrecondition when the guest is not in memory here.
        """
        ...

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        """The guest's serial console log on this host from `offset` (negative: from the end). Raises NotFound."""
        ...
