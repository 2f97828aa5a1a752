"""The port between controllers and an agent. The gRPC client and the agent's own core both fulfil it.

Every mutating call carries a `Caller`. It may be repeated: it observes first, acts only on what is missing, and
answers what is true afterwards. It raises StaleClaim when a newer claim on the same guest has been seen.
Errors of transport: AgentUnavailable (the agent did not get the call), AgentIndefinite (it may have acted).
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestSpec,
    GuestStatus,
    ImageFile,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    RebootMode,
    SlotObservation,
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

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Make the guest's copy-on-write root disk over its image, unless it exists. Raises NotFound, StorageError."""
        ...

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Write `spec.run_epoch` and this node's name beside the disk, durably.

        No error when they are there already. Raises StaleRunEpoch when a higher epoch, or the same one of another
        node, is there.
        """
        ...

    async def start_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        """Define and start the guest, unless it runs already.

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

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        """Let a paused guest run on. Raises FailedPrecondition when it is neither paused nor running."""
        ...

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        """Kill it if it runs and forget its definition. The disk stays. No error when absent."""
        ...

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        """Delete the guest's disks and what lies beside them. No error when absent. Refused while it runs here."""
        ...

    def migrate_guest(
        self, caller: Caller, *, spec: GuestSpec, destination: MigrationDestination, limits: MigrationLimits
    ) -> AsyncGenerator[MigrationProgress, None]:
        """Live-migrate to another node over shared storage, and tell the progress at least four times a second.

        The last item is COMPLETED, FAILED or CANCELLED. A second call with the same operation joins the running
        migration, or gets the outcome of the finished one. Closing the iterator does not stop the migration.
        """
        ...

    async def cancel_migration(self, caller: Caller, *, uid: str) -> None:
        """Ask a running migration to stop; no error when none runs. The outcome comes from `migrate_guest`."""
        ...

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        """The guest's serial console log on this host from `offset` (negative: from the end). Raises NotFound."""
        ...
