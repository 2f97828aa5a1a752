"""What the agent's core asks of its surroundings."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leeward.agent.types import (
    GuestSpec,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    RebootMode,
    SlotObservation,
)


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """What the hypervisor says of its host."""

    vcpus: int
    memory_mib: int
    hypervisor: str
    hypervisor_version: str


@dataclass(frozen=True, slots=True)
class MigrationTransport:
    """Unix sockets on the source host that lead, through the agents, to the destination's libvirt and QEMU.

    libvirt knows one path for both memory sockets: with it, they are the same path on the two hosts.
    """

    libvirt_socket: Path
    memory_socket: Path
    destination_memory_socket: Path  # Where the destination's QEMU listens, on the destination host.


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

    async def start(self, spec: GuestSpec, *, disk: Path, console_log: Path) -> None:
        """Define (anew) and start; no error when it runs."""
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

    async def resume(self, uid: str) -> None:
        """Let a paused guest run on."""
        ...

    async def undefine(self, uid: str) -> None:
        """Forget a stopped guest. No error when not known."""
        ...

    def migrate(
        self, spec: GuestSpec, *, destination: str, transport: MigrationTransport, limits: MigrationLimits
    ) -> AsyncIterator[MigrationProgress]:
        """Live-migrate; yields progress at least four times a second, ends with COMPLETED, FAILED or CANCELLED.

        Joins the migration of this guest when one runs already. Leaving the iterator does not stop it. Raises
        HypervisorError when the guest does not run here, or the outcome is not known.
        """
        ...

    def follow_migration(self, uid: str, *, timeout_s: float = 3600.0) -> AsyncIterator[MigrationProgress]:
        """As `migrate`, for a migration that runs already, whoever started it; starts none.

        When none runs, the outcome is read from the guest: COMPLETED if it is gone from here, else FAILED.
        """
        ...

    async def cancel_migration(self, uid: str) -> None:
        """Ask a running migration to stop. No error when none runs."""
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

    def may_start_guests(self, pool_id: str) -> bool:
        """Whether a guest with its disk in that pool may be started: no deadline for it has passed."""
        ...

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        """The storage heartbeats of all nodes in all pools of this host, as seen from here."""
        ...


class Claims(Protocol):
    """For each guest the highest claim revision that a caller has shown, kept over restarts of the agent."""

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
    """The other end of a migration while it lasts: its agent, and the sockets that lead to its hypervisor."""

    peer: Peer
    transport: MigrationTransport


class Routes(Protocol):
    """Makes the way from this host to another one for a migration."""

    def open(
        self, *, operation: str, uid: str, destination: MigrationDestination
    ) -> AbstractAsyncContextManager[MigrationRoute]:
        """The way, as long as the context lasts. Raises AgentUnavailable, StorageError (no socket can be made)."""
        ...
