"""A simulated guest, and how long things take."""

from dataclasses import dataclass
from pathlib import Path

from leeward.agent.types import GuestSpec, GuestState, GuestStatus, StopCause
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks


@dataclass(frozen=True, slots=True)
class SimulatedTiming:
    """How long things take, and how fast memory moves and changes."""

    start_s: float = 0.05
    answer_s: float = 2.0  # From boot to the guest's agent, and its ports, answering.
    shutdown_s: float = 0.1  # From the power button to the guest being off.
    tick_s: float = 1.0  # Between two lines on the console.
    prepare_s: float = 0.05
    switch_s: float = 0.02
    memory_mib_s: float = 1024.0  # Unless limited by the caller. Suspended and woken is at the same rate.
    backup_s: float = 0.05
    dirty_mib_s: float = 8.0
    written_mib: float = 32.0  # What a guest has written on its disks, which a migration without shared storage copies.
    step_s: float = 0.1  # Between two reports of a migration.
    unresponsive_s: float = 10.0  # After which a call on an unresponsive host fails.


@dataclass(slots=True, eq=False)
class SimulatedGuest:
    """What a host knows of one guest."""

    spec: GuestSpec
    disks: GuestDisks
    console: ConsoleFiles
    state: GuestState = GuestState.STOPPED
    stop_cause: StopCause = StopCause.NONE
    boots: int = 0
    booted_s: float = 0.0  # On the host's clock.
    paused_by_io_error: bool = False
    incoming: bool = False  # The destination of a migration that has not switched yet.
    outgoing: bool = False  # The source of a running migration.
    holds_disk: bool = True  # Not while it arrives, nor once it was handed over.
    memory_follows: bool = False  # Post-copy: a part of its memory is on the source, and a part on the destination.
    missing_bytes: int = 0  # How much of it is still to follow.

    @property
    def boot_disk(self) -> Path:
        """What it boots from, and so writes to."""
        return self.disks.rescue or self.disks.root

    @property
    def active(self) -> bool:
        """Whether it has a process."""
        return self.state in (GuestState.RUNNING, GuestState.PAUSED)

    @property
    def may_write(self) -> bool:
        """Whether it executes, or could be let execute, here: at most one host may say so at any time."""
        return self.active and self.holds_disk

    def status(self) -> GuestStatus:
        """As the port tells it."""
        return GuestStatus(
            uid=self.spec.uid,
            name=self.spec.name,
            state=self.state,
            stop_cause=self.stop_cause,
            run_epoch=self.spec.run_epoch,
            migrating=self.incoming or self.outgoing or (self.memory_follows and self.active),
        )
