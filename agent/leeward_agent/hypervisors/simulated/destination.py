"""The other end of a simulated migration, and the one that lies in the same process."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from leeward.agent.types import GuestSpec, GuestState
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import GuestDisks
from leeward_agent.hypervisors.simulated.files import DiskRecord
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost
from leeward_agent.ports import FolderMove


class OutcomeUnknown(Exception):
    """The destination was told to run the guest, and did not answer."""


@dataclass(frozen=True, slots=True)
class Switch:
    """How a guest goes on at the destination."""

    paused: bool
    record: DiskRecord | None = None  # What its copied disk holds; None when its disk is shared.
    memory_follows: bool = False  # Post-copy: `finish` comes when all of it is there.


class Destination(Protocol):
    """The other end of a migration. All but `abandon` raise HypervisorError when it did not happen."""

    async def prepare(self, guest: SimulatedGuest, spec: GuestSpec) -> None:
        """Make the guest known there, not executing."""
        ...

    async def receive(self, size_bytes: int) -> None:
        """Take this much memory, also after `switch`."""
        ...

    async def receive_disk(self, size_bytes: int) -> None:
        """Take this much of the disks."""
        ...

    async def switch(self, how: Switch) -> None:
        """Let it execute there. Raises OutcomeUnknown when it cannot be told whether it does."""
        ...

    async def finish(self) -> None:
        """All its memory is there, after a switch that went before it."""
        ...

    async def mend(self, uid: str) -> None:
        """Instead of `prepare`: find the guest there whose memory was following when the connection broke."""
        ...

    def abandon(self) -> None:
        """Let go of it: a guest that was not switched is forgotten there."""
        ...


def moved(disks: GuestDisks, folders: FolderMove) -> GuestDisks:
    """The same disks where the destination has them."""
    if folders.here == folders.there:
        return disks
    return GuestDisks(
        root=_there(disks.root, folders),
        data=tuple(_there(path, folders) for path in disks.data),
        seed=_there(disks.seed, folders) if disks.seed is not None else None,
        rescue=_there(disks.rescue, folders) if disks.rescue is not None else None,
        firmware_vars=_there(disks.firmware_vars, folders) if disks.firmware_vars is not None else None,
    )


def _there(path: Path, folders: FolderMove) -> Path:
    return folders.there / path.name


class LocalDestination:
    """A host in the same process."""

    def __init__(self, host: SimulatedHost, *, source: str, folders: FolderMove) -> None:
        self._host = host
        self._source = source
        self._folders = folders
        self._boot = host.boot
        self._guest: SimulatedGuest | None = None

    async def prepare(self, guest: SimulatedGuest, spec: GuestSpec) -> None:
        """Make the guest known there, not executing."""
        arriving = replace(
            guest, spec=spec, disks=moved(guest.disks, self._folders), state=GuestState.PAUSED, incoming=True,
            outgoing=False, holds_disk=False, paused_by_io_error=False,
        )  # fmt: skip
        self._host.receive(arriving)
        self._guest = arriving

    async def receive(self, size_bytes: int) -> None:
        """Take this much memory."""
        self._arriving()

    async def receive_disk(self, size_bytes: int) -> None:
        """Take this much of the disks."""
        self._arriving()

    async def switch(self, how: Switch) -> None:
        """Let it execute there. Raises OutcomeUnknown when its answer is lost."""
        let_run(self._host, self._arriving(), how)
        if self._host.loses_switch_answer:
            raise OutcomeUnknown(f"the connection to host {self._host.node} broke in the last step")

    async def finish(self) -> None:
        """All its memory is there."""
        guest = self._arriving()
        guest.memory_follows = False
        self._host.tell(guest.status())

    async def mend(self, uid: str) -> None:
        """Find the half of it that is there."""
        guest = self._host.guests.get(uid)
        if guest is None or not guest.active or not guest.memory_follows:
            raise HypervisorError(f"host {self._host.node} does not hold the other half of guest {uid}")
        self._guest, self._boot = guest, self._host.boot
        self._arriving()

    def abandon(self) -> None:
        """Forget a guest that was not switched."""
        if self._guest is not None and self._guest.incoming and self._host.powered:
            self._host.remove(self._guest)

    def _arriving(self) -> SimulatedGuest:
        guest = self._guest
        if not self._host.world.reaches(self._source, self._host.node):
            raise HypervisorError(f"the connection to host {self._host.node} broke")
        if guest is None or not self._host.powered or self._host.boot != self._boot or not guest.active:
            raise HypervisorError(f"host {self._host.node} lost the arriving guest")
        return guest


def let_run(host: SimulatedHost, guest: SimulatedGuest, how: Switch) -> None:
    """An arrived guest executes."""
    if how.record is not None:
        host.traces.write_record(guest.boot_disk, how.record)
    guest.memory_follows = how.memory_follows
    host.run(guest, paused=how.paused)
