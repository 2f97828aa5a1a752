"""The `Hypervisor` port over a simulated host."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from leeward.agent.types import (
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    RebootMode,
    StopCause,
)
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import EventQueue, SimulatedHost
from leeward_agent.hypervisors.simulated.migration import Destination, LocalDestination, SimulatedMigration
from leeward_agent.hypervisors.simulated.wire import ControlServer, RemoteDestination
from leeward_agent.ports import HostCapacity, MigrationTransport

T = TypeVar("T")


class SimulatedHypervisor:
    """Guests on a `SimulatedHost`, which outlives this object as libvirtd outlives an agent.

    Migration to a host of the same world happens in memory. To a host of another process it goes through the sockets
    of the `MigrationTransport`, and needs `listen` on the destination.
    """

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self._queues: list[EventQueue] = []
        self._control: ControlServer | None = None

    async def listen(self, control_socket: Path) -> None:
        """Accept migrations from other processes on a unix socket: what libvirtd's own socket is for libvirt."""
        self._control = ControlServer(self._host, control_socket)
        await self._control.start()

    async def capacity(self) -> HostCapacity:
        """The host's processors and memory."""
        await self._reach("ask the host's capacity")
        return HostCapacity(
            vcpus=self._host.vcpus,
            memory_mib=self._host.memory_mib,
            hypervisor="simulated",
            hypervisor_version="1",
        )

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        """Every guest that Leeward defined here, in order of uid."""
        await self._reach("list guests")
        return tuple(self._host.guests[uid].status() for uid in sorted(self._host.guests))

    async def get_guest(self, uid: str) -> GuestStatus:
        """One guest; state ABSENT when not known."""
        await self._reach(f"look at guest {uid}")
        guest = self._host.guests.get(uid)
        return guest.status() if guest is not None else GuestStatus(uid=uid, name="", state=GuestState.ABSENT)

    async def paused_by_io_error(self) -> tuple[str, ...]:
        """The guests that paused because their disk could not be read or written, in order of uid."""
        await self._reach("list paused guests")
        return tuple(uid for uid in sorted(self._host.guests) if self._host.guests[uid].paused_by_io_error)

    def events(self) -> AsyncIterator[GuestStatus]:
        """Each change of a guest's state from now on."""
        queue = self._host.subscribe()
        self._queues.append(queue)
        return self._changes(queue)

    async def start(self, spec: GuestSpec, *, disk: Path, console_log: Path) -> None:
        """Define (anew) and start; no error when it runs. It is carried through when the caller goes away."""
        await self._reach(f"start guest {spec.uid}")
        await self._carry_through(f"start guest {spec.uid}", self._host.start(spec, disk=disk, console_log=console_log))

    async def shut_down(self, uid: str) -> None:
        """Press the ACPI power button. Returns at once. No error when it does not run."""
        await self._reach(f"shut down guest {uid}")
        guest = self._host.guests.get(uid)
        if guest is not None and guest.active:
            self._host.press_power_button(guest, then_reset=False)

    async def kill(self, uid: str) -> None:
        """End the guest at once. No error when it does not run."""
        await self._reach(f"kill guest {uid}")
        guest = self._host.guests.get(uid)
        if guest is not None and guest.active:
            self._host.stop(guest, StopCause.REQUESTED)

    async def reboot(self, uid: str, mode: RebootMode, *, timeout_s: float = 0.0) -> bool:
        """SOFT: ask by ACPI, wait at most `timeout_s`, and say whether the guest was restarted. HARD: reset at once."""
        await self._reach(f"reboot guest {uid}")
        guest = self._active(f"reboot guest {uid}", uid)
        if mode is RebootMode.HARD:
            self._host.reset(guest)
            return True
        rebooted = self._host.watch_reboot(uid)
        try:
            self._host.press_power_button(guest, then_reset=True)
            async with asyncio.timeout(timeout_s):
                return await rebooted.wait()
        except TimeoutError:
            return False
        finally:
            self._host.unwatch_reboot(uid, rebooted)

    async def resume(self, uid: str) -> None:
        """Let a paused guest run on."""
        await self._reach(f"resume guest {uid}")
        guest = self._active(f"resume guest {uid}", uid)
        if guest.state is GuestState.PAUSED:
            elsewhere = self._host.world.running_on(uid) or self._control is not None
            if not guest.holds_disk and elsewhere:
                # It was handed over. QEMU's image lock would tell; of hosts in other processes nothing is known here.
                raise HypervisorError(f"resume guest {uid}: it may be running on another host")
            self._host.resume(guest)

    async def undefine(self, uid: str) -> None:
        """Forget a stopped guest. No error when not known. Raises HypervisorError when it runs."""
        await self._reach(f"undefine guest {uid}")
        guest = self._host.guests.get(uid)
        if guest is not None and guest.active:
            raise HypervisorError(f"guest {uid} runs, so it cannot be undefined")
        if guest is not None:
            self._host.remove(guest)

    def migrate(
        self, spec: GuestSpec, *, destination: str, transport: MigrationTransport, limits: MigrationLimits
    ) -> AsyncIterator[MigrationProgress]:
        """Live-migrate; joins the migration of this guest when one runs already."""
        running = self._host.migrations.get(spec.uid)
        if running is None or not running.running:
            guest = self._host.guests.get(spec.uid)
            if guest is None or not guest.active:
                return self._refused(f"migrate guest {spec.uid}: it does not run here")
            to = self._destination(destination, transport)
            running = SimulatedMigration(self._host, guest, spec, to=to, limits=limits)
            self._host.migrations[spec.uid] = running
        return running.reports()

    def follow_migration(self, uid: str, *, timeout_s: float = 3600.0) -> AsyncIterator[MigrationProgress]:
        """As `migrate`, for a migration that runs already, whoever started it; starts none.

        When none runs, the outcome is read from the guest: COMPLETED if it is gone from here, else FAILED.
        """
        running = self._host.migrations.get(uid)
        if running is not None and running.running:
            return running.reports()
        return self._conclude(uid)

    async def cancel_migration(self, uid: str) -> None:
        """Ask a running migration to stop. No error when none runs."""
        await self._reach(f"cancel the migration of guest {uid}")
        running = self._host.migrations.get(uid)
        if running is not None:
            running.cancel()

    async def set_run_epoch(self, uid: str, epoch: int) -> None:
        """Note the epoch by which the guest runs from now on. No error when it is not known."""
        await self._reach(f"note the run epoch of guest {uid}")
        guest = self._host.guests.get(uid)
        if guest is not None:
            guest.spec = replace(guest.spec, run_epoch=epoch)

    async def definition(self, uid: str) -> str:
        """The guest's spec in words; empty when it is not known."""
        await self._reach(f"read the definition of guest {uid}")
        guest = self._host.guests.get(uid)
        return str(guest.spec) if guest is not None else ""

    async def close(self) -> None:
        """Let go of the host. Guests, and migrations, go on."""
        for queue in self._queues:
            queue.put_nowait(None)
        if self._control is not None:
            await self._control.close()

    def _destination(self, node: str, transport: MigrationTransport) -> Destination:
        host = self._host.world.hosts.get(node)
        return LocalDestination(host, source=self._host.node) if host is not None else RemoteDestination(transport)

    async def _conclude(self, uid: str) -> AsyncIterator[MigrationProgress]:
        guest = await self.get_guest(uid)
        if guest.state is GuestState.ABSENT:
            yield MigrationProgress(MigrationPhase.COMPLETED)
        else:
            yield MigrationProgress(MigrationPhase.FAILED, error="it was no longer running when looked at")

    async def _refused(self, why: str) -> AsyncIterator[MigrationProgress]:
        await self._reach(why)
        if why:
            raise HypervisorError(why)
        yield MigrationProgress(MigrationPhase.FAILED)

    async def _changes(self, queue: EventQueue) -> AsyncIterator[GuestStatus]:
        while (status := await queue.get()) is not None:
            yield status

    async def _reach(self, what: str) -> None:
        """What every call needs. Raises HypervisorError while the host does not answer."""
        if not self._host.powered:
            raise HypervisorError(f"{what}: host {self._host.node} is powered off")
        if self._host.unresponsive:
            await self._host.clock.sleep(self._host.timing.unresponsive_s)
            raise HypervisorError(f"{what}: no answer within {self._host.timing.unresponsive_s:g} s")

    async def _carry_through(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        task = self._host.spawn(work)
        await asyncio.wait([task])
        if task.cancelled():
            raise HypervisorError(f"{what}: host {self._host.node} lost power")
        return task.result()

    def _active(self, what: str, uid: str) -> SimulatedGuest:
        guest = self._host.guests.get(uid)
        if guest is None or not guest.active:
            raise HypervisorError(f"{what}: it does not run")
        return guest
