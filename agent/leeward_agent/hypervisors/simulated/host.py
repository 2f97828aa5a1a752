"""Simulated hosts, and the world that holds them. They outlive the driver: an agent may restart on them.

Everything runs on one event loop and one clock, so a run is decided by its inputs alone.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol, TypeVar

from leeward.agent.types import (
    CpuReport,
    GuestProbe,
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationPhase,
    MigrationProgress,
    ProbeKind,
    StopCause,
)
from leeward.clock import Clock
from leeward.errors import HypervisorError, StorageError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.simulated.files import DiskRecord, FileTraces, MemoryTraces, Traces
from leeward_agent.hypervisors.simulated.guest import SimulatedGuest, SimulatedTiming

T = TypeVar("T")

SIMULATED_CPU = CpuReport(model="Simulated-v2", features=("simulated",), usable_models=("Simulated-v1", "Simulated-v2"))


class HostMigration(Protocol):
    """A migration away from a host, which belongs to it."""

    @property
    def running(self) -> bool:
        """Whether its outcome is still open."""
        ...

    def cancel(self) -> None:
        """Stop it, unless it is too late."""
        ...

    def reports(self) -> AsyncIterator[MigrationProgress]:
        """The progress until now and onwards; the last one is the outcome."""
        ...


RunObserver = Callable[[str, str, bool, int], None]
EventQueue = asyncio.Queue[GuestStatus | None]


class SimulatedWorld:
    """The hosts of one process by node name, between which guests migrate.

    `on_run_change(uid, node, running, run_epoch)` is called in the instant in which a guest begins or ceases to have
    the means to write its disk on a node: being started, killed, switched over by a migration. `reaches(one, other)`
    tells whether a migration's connection between two nodes stands.
    """

    def __init__(
        self, *, on_run_change: RunObserver | None = None, reaches: Callable[[str, str], bool] = lambda _, __: True
    ) -> None:
        self.traces = MemoryTraces()
        self.on_run_change = on_run_change
        self.reaches = reaches
        self.hosts: dict[str, SimulatedHost] = {}

    def add_host(
        self,
        node: str,
        *,
        clock: Clock,
        timing: SimulatedTiming | None = None,
        vcpus: int = 8,
        memory_mib: int = 16384,
        writes_files: bool = False,
    ) -> "SimulatedHost":
        """A host, powered on."""
        host = SimulatedHost(
            node,
            world=self,
            clock=clock,
            timing=timing or SimulatedTiming(),
            vcpus=vcpus,
            memory_mib=memory_mib,
            writes_files=writes_files,
        )
        self.hosts[node] = host
        return host

    def running_on(self, uid: str) -> list[str]:
        """The nodes on which a guest has the means to write its disk: never more than one, if Leeward is right."""
        return [host.node for host in self.hosts.values() if uid in host.guests and host.guests[uid].may_write]


class SimulatedHost:
    """One host: its guests, and what a test does to it.

    With `writes_files`, guests print on their console file and count their boots beside their disk. The attributes
    `start_error`, `job_error` (suspending, waking, backups), `migration_errors`, `unresponsive`, `ignores_acpi`,
    `without_agent` (guests that cannot be quiesced), `silent` (guests that answer no probe) and `loses_switch_answer`
    (guests that migrate here are let run, and their source does not hear of it) make things fail, until reset.
    `dirty_mib_s` says by uid how fast a guest changes its memory, where that is not as `timing` has it.
    """

    def __init__(
        self,
        node: str,
        *,
        world: SimulatedWorld,
        clock: Clock,
        timing: SimulatedTiming,
        vcpus: int,
        memory_mib: int,
        writes_files: bool,
    ) -> None:
        self.node = node
        self.world = world
        self.clock = clock
        self.timing = timing
        self.vcpus = vcpus
        self.memory_mib = memory_mib
        self.writes_files = writes_files
        self.traces: Traces = FileTraces() if writes_files else world.traces
        self.guests: dict[str, SimulatedGuest] = {}
        self.migrations: dict[str, HostMigration] = {}
        self.cpu = SIMULATED_CPU
        self.powered = True
        self.boot = 1
        self.unresponsive = False
        self.ignores_acpi: set[str] = set()
        self.without_agent: set[str] = set()
        self.silent: set[str] = set()
        self.start_error = ""
        self.job_error = ""
        self.loses_switch_answer = False
        self.migration_errors: dict[MigrationPhase, str] = {}
        self.dirty_mib_s: dict[str, float] = {}
        self._lost_pools: set[str] = set()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._tickers: dict[str, asyncio.Task[None]] = {}
        self._queues: weakref.WeakValueDictionary[int, EventQueue] = weakref.WeakValueDictionary()
        self._queue_number = 0
        self._reboots: dict[str, list[asyncio.Event]] = {}
        self._consoles: dict[str, list[asyncio.Queue[bytes | None]]] = {}

    # What a test does to it.

    def power_off(self) -> None:
        """Cut the power: every guest is gone in this instant. Definitions survive, as libvirt's do."""
        self.powered = False
        for task in list(self._tasks):
            task.cancel()
        for guest in list(self.guests.values()):
            if guest.incoming:
                self.remove(guest)
            elif guest.active:
                self.stop(guest, StopCause.NONE)

    def power_on(self) -> None:
        """Boot it again; no guest runs."""
        self.powered = True
        self.boot += 1

    def guest_crash(self, uid: str) -> None:
        """The guest's process ends by itself, or by somebody's SIGKILL."""
        self._stop_if_active(uid, StopCause.CRASHED)

    def guest_power_off(self, uid: str) -> None:
        """The guest shuts itself down."""
        self._stop_if_active(uid, StopCause.GUEST)

    def lose_storage(self, pool_id: str) -> None:
        """Guests on this pool pause on an I/O error, and none can be started."""
        self._lost_pools.add(pool_id)
        for guest in list(self.guests.values()):
            self._check_storage(guest)

    def restore_storage(self, pool_id: str) -> None:
        """The pool works again. Guests stay paused until they are resumed."""
        self._lost_pools.discard(pool_id)

    # What the driver and migrations use.

    def subscribe(self) -> EventQueue:
        """A queue that gets each change, until nobody refers to it."""
        queue: EventQueue = asyncio.Queue()
        self._queue_number += 1
        self._queues[self._queue_number] = queue
        return queue

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work of the host itself, which goes on when the agent dies, and ends with the host's power."""
        # In no caller's context: it is not part of the process that asks for it.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def silence(self, guest: SimulatedGuest, probe: GuestProbe) -> str:
        """Why a guest does not answer; nothing when it does."""
        uid = guest.spec.uid
        booting = self.clock.monotonic_s() - guest.booted_s < self.timing.answer_s
        if booting or uid in self.silent:
            return "it is still booting" if booting else "nothing answers"
        if probe.kind is ProbeKind.GUEST_AGENT and uid in self.without_agent:
            return "its guest agent is not connected"
        return ""

    async def start(self, spec: GuestSpec, *, disks: GuestDisks, console: ConsoleFiles, paused: bool) -> None:
        """Define and boot, unless active."""
        guest = self.guests.get(spec.uid)
        if guest is not None and guest.active:
            return
        await self.clock.sleep(self.timing.start_s)
        guest = self.guests.get(spec.uid)
        if guest is not None and guest.active:
            return
        error = self.start_error or (f"pool {spec.pool_id} cannot be read" if spec.pool_id in self._lost_pools else "")
        if error:
            self.guests.pop(spec.uid, None)
            raise HypervisorError(f"start guest {spec.uid}: {error}")
        guest = SimulatedGuest(spec=spec, disks=disks, console=console)
        self.guests[spec.uid] = guest
        self._boot(guest)
        self.run(guest, paused=paused)

    def run(self, guest: SimulatedGuest, *, paused: bool = False) -> None:
        """The guest executes here from now on (`paused`: could): after its start, or switched over."""
        wrote = guest.may_write
        guest.incoming, guest.holds_disk = False, True
        guest.state, guest.stop_cause = GuestState.PAUSED if paused else GuestState.RUNNING, StopCause.NONE
        if not wrote:
            self._tell_run(guest, running=True)
        self.tell(guest.status())
        self._check_storage(guest)
        self._tick_from_now(guest)

    def stop(self, guest: SimulatedGuest, cause: StopCause) -> None:
        """Its process ends."""
        wrote = guest.may_write
        guest.state, guest.stop_cause = GuestState.STOPPED, cause
        guest.outgoing = guest.paused_by_io_error = False
        self._stop_ticking(guest)
        self._end_consoles(guest)
        if wrote:
            self._tell_run(guest, running=False)
        self.tell(guest.status())

    def hand_over(self, guest: SimulatedGuest) -> None:
        """The guest ceases to execute here, in the instant before it does on the destination."""
        guest.state, guest.holds_disk = GuestState.PAUSED, False
        self._stop_ticking(guest)
        self._tell_run(guest, running=False)
        self.tell(guest.status())

    def receive(self, guest: SimulatedGuest) -> None:
        """A migration begins to arrive. Raises HypervisorError when the guest is active here or the host is off."""
        present = self.guests.get(guest.spec.uid)
        if not self.powered:
            raise HypervisorError(f"host {self.node} is powered off")
        if present is not None and present.active:
            raise HypervisorError(f"guest {guest.spec.uid} is active on {self.node} already")
        self.guests[guest.spec.uid] = guest
        self.tell(guest.status())

    def remove(self, guest: SimulatedGuest) -> None:
        """Forget a guest that executes nowhere or elsewhere."""
        self._stop_ticking(guest)
        self._end_consoles(guest)
        if self.guests.get(guest.spec.uid) is guest:
            del self.guests[guest.spec.uid]
        self.tell(GuestStatus(uid=guest.spec.uid, name="", state=GuestState.ABSENT))

    def pause(self, guest: SimulatedGuest) -> None:
        """It stays in memory and does not execute."""
        if guest.state is GuestState.RUNNING:
            guest.state = GuestState.PAUSED
            self._stop_ticking(guest)
            self.tell(guest.status())

    def say(self, guest: SimulatedGuest, line: str) -> None:
        """The guest prints a line on its console. Raises StorageError."""
        if self._has_files(guest):
            self.traces.say(guest.console.log, line + "\n")
        self.show(guest, line.encode() + b"\r\n")

    def show(self, guest: SimulatedGuest, data: bytes) -> None:
        """Whoever is attached to the guest's console sees this."""
        for console in self._consoles.get(guest.spec.uid, []):
            console.put_nowait(data)

    def open_console(self, uid: str) -> "asyncio.Queue[bytes | None]":
        """What the guest's console shows from now on; None at its end."""
        console: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._consoles.setdefault(uid, []).append(console)
        return console

    def close_console(self, uid: str, console: "asyncio.Queue[bytes | None]") -> None:
        """Let go of it."""
        self._consoles[uid].remove(console)

    @property
    def attached_consoles(self) -> list[str]:
        """The uids of the guests to whose consoles somebody is attached."""
        return [uid for uid, consoles in self._consoles.items() if consoles]

    def resume(self, guest: SimulatedGuest) -> None:
        """A paused guest runs on; it pauses again at once while its pool is lost."""
        guest.paused_by_io_error = False
        self.run(guest)

    def reset(self, guest: SimulatedGuest) -> None:
        """The guest boots again without having been stopped."""
        self._boot(guest)
        self.run(guest)
        for event in self._reboots.get(guest.spec.uid, []):
            event.set()

    def press_power_button(self, guest: SimulatedGuest, *, then_reset: bool) -> None:
        """The guest goes down after a while, unless it ignores the button."""
        if guest.spec.uid not in self.ignores_acpi:
            self.spawn(self._go_down(guest, guest.boots, then_reset=then_reset))

    def watch_reboot(self, uid: str) -> asyncio.Event:
        """An event that is set when the guest boots again."""
        event = asyncio.Event()
        self._reboots.setdefault(uid, []).append(event)
        return event

    def unwatch_reboot(self, uid: str, event: asyncio.Event) -> None:
        """Forget an event from `watch_reboot`."""
        self._reboots[uid].remove(event)

    def tell(self, status: GuestStatus) -> None:
        """Tell every listener a change."""
        for queue in self._queues.values():
            queue.put_nowait(status)

    async def _go_down(self, guest: SimulatedGuest, boots: int, *, then_reset: bool) -> None:
        await self.clock.sleep(self.timing.shutdown_s)
        if (
            self.guests.get(guest.spec.uid) is not guest
            or guest.boots != boots
            or guest.state is not GuestState.RUNNING
        ):
            return
        if then_reset:
            self.reset(guest)
        else:
            self.stop(guest, StopCause.GUEST)

    def _boot(self, guest: SimulatedGuest) -> None:
        guest.booted_s = self.clock.monotonic_s()
        guest.boots += 1
        if self.leaves_traces(guest):
            before = self.traces.read_record(guest.boot_disk)
            guest.boots = before.boots + 1
            self.traces.write_record(guest.boot_disk, DiskRecord(boots=guest.boots, lines=before.lines))
            self.say(guest, f"leeward-guest: boot {guest.boots} line={before.lines} uptime=0.00")

    def _stop_if_active(self, uid: str, cause: StopCause) -> None:
        guest = self.guests.get(uid)
        if guest is not None and guest.active:
            self.stop(guest, cause)

    def _check_storage(self, guest: SimulatedGuest) -> None:
        if guest.state is GuestState.RUNNING and guest.spec.pool_id in self._lost_pools:
            self._pause_on_io_error(guest)

    def _pause_on_io_error(self, guest: SimulatedGuest) -> None:
        guest.state, guest.paused_by_io_error = GuestState.PAUSED, True
        self._stop_ticking(guest)
        self.tell(guest.status())

    def _tell_run(self, guest: SimulatedGuest, *, running: bool) -> None:
        if self.world.on_run_change is not None:
            self.world.on_run_change(guest.spec.uid, self.node, running, guest.spec.run_epoch)

    def _end_consoles(self, guest: SimulatedGuest) -> None:
        for console in self._consoles.get(guest.spec.uid, []):
            console.put_nowait(None)

    def _has_files(self, guest: SimulatedGuest) -> bool:
        return self.writes_files and guest.boot_disk.parent.is_dir()

    def leaves_traces(self, guest: SimulatedGuest) -> bool:
        """Whether there is a place for what it writes."""
        return not self.writes_files or self._has_files(guest)

    def _tick_from_now(self, guest: SimulatedGuest) -> None:
        if guest.state is GuestState.RUNNING and guest.spec.uid not in self._tickers and self._has_files(guest):
            self._tickers[guest.spec.uid] = self.spawn(self._tick(guest))

    def _stop_ticking(self, guest: SimulatedGuest) -> None:
        ticker = self._tickers.pop(guest.spec.uid, None)
        if ticker is not None:
            ticker.cancel()

    async def _tick(self, guest: SimulatedGuest) -> None:
        while True:
            await self.clock.sleep(self.timing.tick_s)
            try:
                before = self.traces.read_record(guest.boot_disk)
                record = DiskRecord(boots=before.boots, lines=before.lines + 1)
                self.traces.write_record(guest.boot_disk, record)
                uptime_s = self.clock.monotonic_s() - guest.booted_s
                self.say(guest, f"leeward-guest: tick boot={record.boots} line={record.lines} uptime={uptime_s:.2f}")
            except StorageError:
                # What QEMU does for a real guest: pause it, to be resumed when the storage is back.
                self._pause_on_io_error(guest)
                return
