"""Suspending, waking and backing up simulated guests. Cancelling one undoes it."""

import asyncio
from pathlib import Path

from leeward.agent.types import GuestState, StopCause
from leeward.errors import HypervisorError, StorageError
from leeward_agent.domain.guest_files import GuestDisks
from leeward_agent.hypervisors.simulated.files import SavedMemory
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost

CONVERT_TIMEOUT_S = 60.0
_QCOW2_MAGIC = b"QFI\xfb"


async def suspend(host: SimulatedHost, guest: SimulatedGuest, *, to: Path) -> None:
    """Halt, write what it remembers, end it; it goes on as before when that fails."""
    what = f"suspend guest {guest.spec.uid}"
    ran = guest.state is GuestState.RUNNING
    uptime_s = host.clock.monotonic_s() - guest.booted_s
    host.pause(guest)
    done = False
    try:
        await host.clock.sleep(guest.spec.memory_mib / host.timing.memory_mib_s)
        _check(host, guest, what)
        _save(host, to, SavedMemory(boots=guest.boots, uptime_s=uptime_s), what)
        done = True
    finally:
        if not done and ran and guest.state is GuestState.PAUSED and host.powered:
            host.resume(guest)
    host.stop(guest, StopCause.REQUESTED)


async def wake(host: SimulatedHost, guest: SimulatedGuest, *, memory: Path) -> None:
    """The guest as it was when it was suspended, not executing."""
    what = f"wake guest {guest.spec.uid}"
    try:
        saved = host.traces.load(memory)
    except HypervisorError as error:
        raise HypervisorError(f"{what}: {error.message}") from error
    await host.clock.sleep(guest.spec.memory_mib / host.timing.memory_mib_s)
    present = host.guests.get(guest.spec.uid)
    if present is not None and present.active:
        return
    if host.job_error:
        raise HypervisorError(f"{what}: {host.job_error}")
    guest.boots, guest.booted_s = saved.boots, host.clock.monotonic_s() - saved.uptime_s
    host.guests[guest.spec.uid] = guest
    host.run(guest, paused=True)


async def backup(host: SimulatedHost, guest: SimulatedGuest, *, disks: GuestDisks, to: Path) -> bool:
    """Copy the root disk, where there are files; whether the guest could be quiesced."""
    what = f"back up guest {guest.spec.uid}"
    quiesced = guest.state is GuestState.RUNNING and guest.spec.uid not in host.without_agent
    await host.clock.sleep(host.timing.backup_s)
    _check(host, guest, what)
    if host.leaves_traces(guest):
        host.traces.write_record(to, host.traces.read_record(disks.root))
    if host.writes_files and await asyncio.to_thread(_is_qcow2, disks.root):
        await _convert(disks.root, to, what)
    return quiesced


def _check(host: SimulatedHost, guest: SimulatedGuest, what: str) -> None:
    if host.job_error:
        raise HypervisorError(f"{what}: {host.job_error}")
    if host.guests.get(guest.spec.uid) is not guest or not guest.active:
        raise HypervisorError(f"{what}: it has stopped meanwhile")


def _save(host: SimulatedHost, to: Path, saved: SavedMemory, what: str) -> None:
    try:
        host.traces.save(to, saved)
    except StorageError as error:
        raise HypervisorError(f"{what}: {error.message}") from error


def _is_qcow2(disk: Path) -> bool:
    """Whether there is a file that can be copied: a simulated guest can do without."""
    if not disk.is_file():
        return False
    with disk.open("rb") as file:
        return file.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC


async def _convert(disk: Path, to: Path, what: str) -> None:
    command = ("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "qcow2", str(disk), str(to))
    try:
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    except OSError as error:
        raise HypervisorError(f"{what}: cannot run qemu-img: {error}") from error
    try:
        async with asyncio.timeout(CONVERT_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise HypervisorError(f"{what}: not done within {CONVERT_TIMEOUT_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise HypervisorError(f"{what}: {said.decode(errors='replace').strip()}")
