"""Suspending, waking and backing up guests: long jobs of libvirt's, each on a connection of its own."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from leeward.agent.types import GuestSpec
from leeward.clock import Clock
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.libvirt import actions, jobs
from leeward_agent.hypervisors.libvirt.connection import LibvirtConnections, VirConnect
from leeward_agent.hypervisors.libvirt.devices_xml import root_disk_name
from leeward_agent.hypervisors.libvirt.domain_xml import metadata_of

T = TypeVar("T")

ABORT_DEADLINE_S = 35.0
POLL_S = 0.2
_BASE_S = 60.0
_SLOWEST_MIB_S = 1.0
_LONGEST_S = 4 * 3600.0

_log = structlog.get_logger(__name__)


class GuestJobs:
    """Cancelling any of these ends the job and waits for that; the guest is as before, or the job was done already."""

    def __init__(self, uri: str, *, clock: Clock, urgent: LibvirtConnections) -> None:
        self._uri = uri
        self._clock = clock
        self._urgent = urgent

    async def suspend(self, spec: GuestSpec, *, to: Path) -> None:
        """Write its memory to `to` and end it; when it fails, the guest goes on as before."""
        what = f"suspend guest {spec.uid}"
        save = partial(jobs.save, uid=spec.uid, to=to)
        await self._perform(what, spec.uid, save, deadline_s=_deadline_s(spec.memory_mib))

    async def wake(self, spec: GuestSpec, *, memory: Path, disks: GuestDisks, console: ConsoleFiles, xml: str) -> None:
        """Bring it back from `memory`, not executing. After a failure it has no process."""
        what = f"wake guest {spec.uid}"
        restore = partial(
            jobs.restore, memory=memory, xml=xml, metadata=metadata_of(spec), disks=disks, console=console
        )
        # libvirt lets nobody abort this job. The guest has not executed anything, and its memory is in the file.
        await self._perform(what, spec.uid, restore, deadline_s=_deadline_s(spec.memory_mib), undo=actions.kill)

    async def backup(self, spec: GuestSpec, *, disks: GuestDisks, to: Path) -> bool:
        """Copy the root disk as it is at one moment to `to`; whether the guest's file systems were frozen then."""
        what = f"back up guest {spec.uid}"
        begin = partial(jobs.begin_backup, uid=spec.uid, disk=root_disk_name(disks), to=to)
        deadline_s = self._clock.monotonic_s() + _deadline_s(spec.disk_gib * 1024)
        try:
            quiesced = await self._perform(what, spec.uid, begin, deadline_s=_BASE_S)
            while await self._urgent.call(what, partial(jobs.backup_runs, uid=spec.uid), deadline_s=_BASE_S):
                if self._clock.monotonic_s() > deadline_s:
                    raise HypervisorError(f"{what}: it is not done in time")
                await self._clock.sleep(POLL_S)
        except (asyncio.CancelledError, HypervisorError):
            await self._undo(what, spec.uid, jobs.abort)
            raise
        return quiesced

    async def _perform(
        self,
        what: str,
        uid: str,
        work: Callable[[VirConnect], T],
        *,
        deadline_s: float,
        undo: Callable[[VirConnect, str], None] = jobs.abort,
    ) -> T:
        connection = LibvirtConnections(self._uri, name=f"job-{uid}")
        performing = asyncio.ensure_future(connection.call(what, work, deadline_s=deadline_s + 2 * ABORT_DEADLINE_S))
        try:
            await asyncio.wait((performing,), timeout=deadline_s)
            if not performing.done():
                await self._undo(what, uid, undo)
            return await performing
        except asyncio.CancelledError:
            await self._end(what, uid, undo, performing)
            raise
        finally:
            performing.cancel()
            connection.close()

    async def _end(
        self, what: str, uid: str, undo: Callable[[VirConnect, str], None], performing: asyncio.Future[T]
    ) -> None:
        """Undo until it has ended: libvirt forgets an abort that comes after the job's begin and before QEMU's part."""
        deadline_s = self._clock.monotonic_s() + ABORT_DEADLINE_S
        while not performing.done() and self._clock.monotonic_s() < deadline_s:
            await self._undo(what, uid, undo)
            await asyncio.wait((performing,), timeout=POLL_S)

    async def _undo(self, what: str, uid: str, undo: Callable[[VirConnect, str], None]) -> None:
        """Best effort: the guest may have ended meanwhile, and whoever asks next finds the job and its file."""
        try:
            await self._urgent.call(f"{what}: abort", lambda it: undo(it, uid), deadline_s=ABORT_DEADLINE_S)
        except HypervisorError as error:
            _log.warning("a job cannot be aborted", what=what, error=error.message)


def _deadline_s(size_mib: float) -> float:
    return _BASE_S + min(size_mib / _SLOWEST_MIB_S, _LONGEST_S)
