"""What the agent's core asks of its surroundings."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from leeward.agent.types import (
    CpuReport,
    GuestProbe,
    GuestSpec,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    PoolSource,
    RebootMode,
    SlotObservation,
)
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """What the hypervisor says of its host."""

    vcpus: int
    memory_mib: int
    hypervisor: str
    hypervisor_version: str
    cpu: CpuReport = field(default_factory=CpuReport)


@dataclass(frozen=True, slots=True)
class MigrationTransport:
    """Unix sockets on the source host that lead, through the agents, to the destination's libvirt and QEMU.

    libvirt knows one path for both memory sockets, and one for both disk sockets: with it, they are the same paths on
    the two hosts.
    """

    libvirt_socket: Path
    memory_socket: Path
    disk_socket: Path
    destination_memory_socket: Path  # Where the destination's QEMU listens, on the destination host.
    destination_disk_socket: Path


@dataclass(frozen=True, slots=True)
class NativeTransport:
    """How the two libvirts and QEMUs reach each other by themselves, past the agents.

    `host` is the destination as its peers reach it; with `tls` QEMU encrypts memory and disks by libvirt's own
    certificates. `connections` are how many carry the memory side by side; 0 and 1: one.
    """

    libvirt_uri: str
    host: str
    tls: bool
    connections: int = 0


Transport: TypeAlias = MigrationTransport | NativeTransport


@dataclass(frozen=True, slots=True)
class FolderMove:
    """The guest's folder, which holds its disks under the same names, on the source and on the destination."""

    here: Path
    there: Path


class Hypervisor(Protocol):
    """Runs guests on this host. Implemented over libvirt and by a simulation; one contract suite holds both.

    Each method asks the hypervisor itself, never a cache. Raises HypervisorError with what was being done.
    """

    async def capacity(self) -> HostCapacity:
        """The host's processors and memory."""
        ...

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        """Every guest that Leeward defined here, in order of uid."""
        ...

    async def get_guest(self, uid: str) -> GuestStatus:
        """One guest; state ABSENT when not known."""
        ...

    def events(self) -> AsyncIterator[GuestStatus]:
        """Each change of a guest's state from now on; first, and after a gap, every guest may be told."""
        ...

    async def start(self, spec: GuestSpec, *, disks: GuestDisks, console: ConsoleFiles, paused: bool = False) -> None:
        """Define (anew) and start, with `paused` without executing; no error when it is in memory."""
        ...

    async def shut_down(self, uid: str) -> None:
        """Press the ACPI power button. Returns at once. No error when it does not run."""
        ...

    async def kill(self, uid: str) -> None:
        """End the guest at once. No error when it does not run."""
        ...

    async def reboot(self, uid: str, mode: RebootMode, *, timeout_s: float = 0.0) -> bool:
        """SOFT: ask by ACPI, wait at most `timeout_s`, and say whether the guest was restarted. HARD: reset at once."""
        ...

    async def probe(self, uid: str, probe: GuestProbe) -> str:
        """Look once whether a guest that runs answers: why it does not, or nothing."""
        ...

    async def pause(self, uid: str) -> None:
        """Halt the processors of a guest in memory. No error when they are."""
        ...

    async def inject_nmi(self, uid: str) -> None:
        """Send a guest in memory a non-maskable interrupt."""
        ...

    async def suspend(self, spec: GuestSpec, *, to: Path) -> None:
        """Write the guest's memory to the new file `to` and end its process; STOPPED afterwards.

        When it fails, or is cancelled before its end, the guest goes on as before and there is no file.
        """
        ...

    async def wake(self, spec: GuestSpec, *, memory: Path, disks: GuestDisks, console: ConsoleFiles) -> None:
        """Bring the guest back from its memory, whole but PAUSED. No error when it is in memory.

        After a failure it has no process here, and the file is as it was.
        """
        ...

    async def backup(self, spec: GuestSpec, *, disks: GuestDisks, to: Path) -> bool:
        """Copy the root disk of a guest in memory, as it is at one moment, to the new qcow2 file `to`.

        Answers whether the guest's file systems were frozen then. Cancelling ends it; a part of the file may stay.
        """
        ...

    def attach_console(
        self, uid: str, *, console: ConsoleFiles, input: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """What a guest in memory writes to its console, after an empty item once attached; ends when it stops.

        What it writes while nobody takes the next item is waited with: the guest may stand still until then.
        """
        ...

    async def resume(self, uid: str) -> None:
        """Let a paused guest run on."""
        ...

    async def undefine(self, uid: str) -> None:
        """Forget a stopped guest. No error when not known."""
        ...

    def migrate(
        self,
        spec: GuestSpec,
        *,
        destination: str,
        transport: Transport,
        folders: FolderMove,
        limits: MigrationLimits,
    ) -> AsyncIterator[MigrationProgress]:
        """Live-migrate; yields progress at least four times a second, ends with COMPLETED, FAILED or CANCELLED.

        With `limits.copies_disks` its disks are copied into the files that lie ready in `folders.there`. When it does
        not come to its end, it goes as far as `limits.escalation` allows, and says so. Joins the migration of this
        guest when one runs already. Leaving the iterator does not stop it. Raises HypervisorError when the guest does
        not run here, or the outcome is not known.
        """
        ...

    def follow_migration(self, uid: str, *, limits: MigrationLimits) -> AsyncIterator[MigrationProgress]:
        """As `migrate`, for a migration that runs already, whoever started it; starts none.

        When none runs, the outcome is read from the guest: COMPLETED if it is gone from here, else FAILED.
        """
        ...

    async def is_split(self, uid: str) -> bool:
        """Whether post-copy broke, so that this host holds only a part of the guest's memory.

        `migrate` with the same arguments takes it up again, when both halves still exist.
        """
        ...

    async def cancel_migration(self, uid: str) -> None:
        """Ask a running migration to stop. No error when none runs.

        Raises FailedPrecondition (reason MIGRATION_COMMITTED) once the guest is on its way to execute on the
        destination.
        """
        ...

    async def set_run_epoch(self, uid: str, epoch: int) -> None:
        """Note the epoch by which the guest runs from now on in its definition. No error when it is not known."""
        ...

    async def paused_by_io_error(self) -> tuple[str, ...]:
        """The guests that stand still because their disk could not be read or written, in order of uid."""
        ...

    async def definition(self, uid: str) -> str:
        """The guest's definition in the hypervisor's own words, to be kept for people; empty when it is not known."""
        ...

    async def close(self) -> None:
        """Let go of the hypervisor. Guests run on."""
        ...


class Vitals(Protocol):
    """This node's heartbeats and guard, as the core needs to know them."""

    @property
    def guard_armed(self) -> bool:
        """Whether the guard holds a deadline, and kills this node's guests on shared storage once it passes."""
        ...

    def is_shared(self, pool_id: str) -> bool:
        """Whether a pool counts as shared with other nodes, so that the guard kills guests that have a disk in it."""
        ...

    def may_start_guests(self, pool_id: str) -> bool:
        """Whether a guest with its disk in that pool may be started, or a disk be made: no deadline has passed."""
        ...

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        """The storage heartbeats of all nodes in all pools of this host, as seen from here."""
        ...

    async def leave_pill(self, *, node: str, boot_id: str, pill_id: str) -> None:
        """Leave a poison pill for another node in every shared pool of this host. Raises StorageError: in none."""
        ...

    async def withdraw_pill(self, *, pill_id: str) -> None:
        """Take this node's own pill away, in every shared pool. Raises StorageError."""
        ...


class Claims(Protocol):
    """For each guest the highest revision that a caller has shown, kept over restarts of the agent."""

    async def highest(self, uid: str) -> int:
        """The highest revision seen, 0 when none was. Raises StorageError."""
        ...

    async def record(self, uid: str, revision: int) -> None:
        """Keep a higher one, durably. Raises StorageError."""
        ...


class Peer(Protocol):
    """Another node's agent, as a migrating one needs it."""

    async def describe_node(self) -> NodeReport:
        """As in AgentApi."""
        ...

    async def get_guest(self, *, uid: str) -> GuestStatus:
        """As in AgentApi."""
        ...


@dataclass(frozen=True, slots=True)
class MigrationRoute:
    """The other end of a migration while it lasts: its agent, and what leads to its hypervisor."""

    peer: Peer
    transport: Transport


class PeerDisks(Protocol):
    """Another node's agent, as one needs it that copies from a pool of its."""

    def read_image(self, *, pool_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """As in AgentApi."""
        ...

    def read_disk(self, *, pool_id: str, uid: str, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        """As in AgentApi."""
        ...


class Peers(Protocol):
    """Reaches the agents of other nodes."""

    def connect(self, source: PoolSource) -> AbstractAsyncContextManager[PeerDisks]:
        """The agent that offers this pool, as long as the context lasts."""
        ...


class Routes(Protocol):
    """Makes the way from this host to another one for a migration."""

    def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AbstractAsyncContextManager[MigrationRoute]:
        """The way, as long as the context lasts. Raises AgentUnavailable, StorageError (no socket can be made)."""
        ...
