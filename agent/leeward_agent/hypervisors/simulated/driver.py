"""The `Hypervisor` port over a simulated host."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from leeward.agent.types import (
    GuestProbe,
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
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.simulated.console import attach
from leeward_agent.hypervisors.simulated.destination import Destination, LocalDestination
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import EventQueue, SimulatedHost
from leeward_agent.hypervisors.simulated.jobs import backup, suspend, wake
from leeward_agent.hypervisors.simulated.migration import SimulatedMigration
from leeward_agent.hypervisors.simulated.wire import ControlServer, RemoteDestination
from leeward_agent.ports import FolderMove, HostCapacity, MigrationTransport, Transport

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
            cpu=self._host.cpu,
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

    async def start(self, spec: GuestSpec, *, disks: GuestDisks, console: ConsoleFiles, paused: bool = False) -> None:
        """Define (anew) and start; no error when it is in memory. Carried through when the caller goes away."""
        what = f"start guest {spec.uid}"
        await self._reach(what)
        await self._carry_through(what, self._host.start(spec, disks=disks, console=console, paused=paused))

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

    async def probe(self, uid: str, probe: GuestProbe) -> str:
        """Why the guest does not answer; one answers a while after it has booted, at any port."""
        await self._reach(f"probe guest {uid}")
        return self._host.silence(self._active(f"probe guest {uid}", uid), probe)

    async def pause(self, uid: str) -> None:
        """Halt its processors. No error when they are."""
        await self._reach(f"pause guest {uid}")
        self._host.pause(self._active(f"pause guest {uid}", uid))

    async def inject_nmi(self, uid: str) -> None:
        """Send it a non-maskable interrupt, of which it tells on its console."""
        await self._reach(f"interrupt guest {uid}")
        self._host.say(self._active(f"interrupt guest {uid}", uid), "NMI received for unknown reason 21 on CPU 0.")

    async def suspend(self, spec: GuestSpec, *, to: Path) -> None:
        """Write its memory to `to` and end it. When it fails or is cancelled the guest goes on."""
        what = f"suspend guest {spec.uid}"
        await self._reach(what)
        guest = self._active(what, spec.uid)
        await self._cancellable(what, suspend(self._host, guest, to=to))

    async def wake(self, spec: GuestSpec, *, memory: Path, disks: GuestDisks, console: ConsoleFiles) -> None:
        """Bring it back from `memory`, PAUSED. After a failure it has no process here."""
        what = f"wake guest {spec.uid}"
        await self._reach(what)
        guest = self._host.guests.get(spec.uid)
        if guest is None or not guest.active:
            guest = SimulatedGuest(spec=spec, disks=disks, console=console)
            await self._cancellable(what, wake(self._host, guest, memory=memory))

    async def backup(self, spec: GuestSpec, *, disks: GuestDisks, to: Path) -> bool:
        """Copy the root disk of a guest in memory to `to`; whether it was quiesced."""
        what = f"back up guest {spec.uid}"
        await self._reach(what)
        guest = self._active(what, spec.uid)
        return await self._cancellable(what, backup(self._host, guest, disks=disks, to=to))

    async def attach_console(
        self, uid: str, *, console: ConsoleFiles, input: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """What the guest writes, after an empty item once attached; ends when it stops."""
        await self._reach(f"attach to the console of guest {uid}")
        guest = self._active(f"attach to the console of guest {uid}", uid)
        async with aclosing(attach(self._host, guest, input=input)) as output:
            async for data in output:
                yield data

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
        self,
        spec: GuestSpec,
        *,
        destination: str,
        transport: Transport,
        folders: FolderMove,
        limits: MigrationLimits,
    ) -> AsyncIterator[MigrationProgress]:
        """Live-migrate; joins the migration of this guest when one runs already."""
        running = self._host.migrations.get(spec.uid)
        if running is None or not running.running:
            guest = self._host.guests.get(spec.uid)
            if guest is None or not guest.active:
                return self._refused(f"migrate guest {spec.uid}: it does not run here")
            to = self._destination(destination, transport, folders)
            running = SimulatedMigration(self._host, guest, spec, to=to, limits=limits)
            self._host.migrations[spec.uid] = running
        return running.reports()

    def follow_migration(self, uid: str, *, limits: MigrationLimits) -> AsyncIterator[MigrationProgress]:
        """As `migrate`, for a migration that runs already, whoever started it; starts none.

        When none runs, the outcome is read from the guest: COMPLETED if it is gone from here, else FAILED.
        """
        running = self._host.migrations.get(uid)
        if running is not None and running.running:
            return running.reports()
        return self._conclude(uid)

    async def is_split(self, uid: str) -> bool:
        """Whether post-copy broke, so that this host holds only a part of the guest's memory."""
        await self._reach(f"look at guest {uid}")
        guest, running = self._host.guests.get(uid), self._host.migrations.get(uid)
        under_way = running is not None and running.running
        return guest is not None and guest.active and guest.memory_follows and not under_way

    async def cancel_migration(self, uid: str) -> None:
        """Ask a running migration to stop. No error when none runs. Raises FailedPrecondition when it is too late."""
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
        """The guest's spec and disks in words; empty when it is not known."""
        await self._reach(f"read the definition of guest {uid}")
        guest = self._host.guests.get(uid)
        return f"{guest.spec} {guest.disks}" if guest is not None else ""

    async def close(self) -> None:
        """Let go of the host. Guests, and migrations, go on."""
        for queue in self._queues:
            queue.put_nowait(None)
        if self._control is not None:
            await self._control.close()

    def _destination(self, node: str, transport: Transport, folders: FolderMove) -> Destination:
        host = self._host.world.hosts.get(node)
        if host is None:
            if not isinstance(transport, MigrationTransport):
                raise HypervisorError("simulated hosts reach each other through their agents only")
            return RemoteDestination(transport, folders)
        return LocalDestination(host, source=self._host.node, folders=folders)

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

    async def _cancellable(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        """Work of the host that ends, and is undone, when the caller gives it up."""
        task = self._host.spawn(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        if task.cancelled():
            raise HypervisorError(f"{what}: host {self._host.node} lost power")
        return task.result()

    async def _carry_through(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        task = self._host.spawn(work)
        try:
            await asyncio.wait([task])
        finally:
            # When this agent dies, nobody hears how it ends.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        if task.cancelled():
            raise HypervisorError(f"{what}: host {self._host.node} lost power")
        return task.result()

    def _active(self, what: str, uid: str) -> SimulatedGuest:
        guest = self._host.guests.get(uid)
        if guest is None or not guest.active:
            raise HypervisorError(f"{what}: it does not run")
        return guest
