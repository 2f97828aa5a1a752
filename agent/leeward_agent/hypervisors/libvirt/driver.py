"""The `Hypervisor` port over libvirt."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import libvirt
import structlog

from leeward.agent.types import (
    CpuReport,
    GuestProbe,
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationLimits,
    MigrationProgress,
    ProbeKind,
    RebootMode,
)
from leeward.clock import Clock
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.libvirt import actions, serial
from leeward_agent.hypervisors.libvirt.connection import LibvirtConnections, VirConnect
from leeward_agent.hypervisors.libvirt.cpu import read_cpu
from leeward_agent.hypervisors.libvirt.domain_xml import Accelerator, Platform, domain_xml
from leeward_agent.hypervisors.libvirt.events import EventHub, Subscription
from leeward_agent.hypervisors.libvirt.guest_jobs import GuestJobs
from leeward_agent.hypervisors.libvirt.migrations import LibvirtMigrations
from leeward_agent.hypervisors.libvirt.probes import connect_tcp, ping_agent
from leeward_agent.hypervisors.libvirt.status import (
    Observed,
    absent,
    is_migrating,
    observe,
    observe_all,
)
from leeward_agent.ports import FolderMove, HostCapacity, Transport

DEFAULT_URI = "qemu:///system"

# libvirtd runs at most twenty calls at a time (`max_workers`), for all of its clients.
_CALLS_AT_A_TIME = 4
QUERY_DEADLINE_S = 10.0
PROBE_DEADLINE_S = 10.0
# libvirt itself gives up waiting for a guest's job lock after 30 s.
ACTION_DEADLINE_S = 35.0
START_DEADLINE_S = 90.0
# QEMU is given 10 s to end on SIGTERM, and 5 s (30 s with devices passed through) after SIGKILL.
KILL_DEADLINE_S = 45.0
# A guest whose QEMU hangs must not hold up everyone who asks for its state.
JOB_QUERY_PATIENCE_S = 2.0
EVENT_RETRY_S = 0.5
# No event tells that a migration has ended on its destination.
MIGRATING_LOOK_AGAIN_S = 0.5

_log = structlog.get_logger(__name__)


class LibvirtHypervisor:
    """Guests on the libvirtd at `uri`.

    Four groups of connections, so that calls that wait for a hanging QEMU hold up neither questions nor kills. All are
    opened when first needed and again after libvirtd was restarted, which disturbs no guest. Every call ends within a
    bound; after a HypervisorError it may have happened or not.
    """

    def __init__(
        self, *, clock: Clock, accelerator: Accelerator, uri: str = DEFAULT_URI, uefi_code: Path | None = None
    ) -> None:
        self._clock = clock
        self._platform = Platform(accelerator, uefi_code)
        self._cpu: CpuReport | None = None
        self._queries = LibvirtConnections(uri, name="queries", most=_CALLS_AT_A_TIME)
        self._jobs = LibvirtConnections(uri, name="jobs", most=_CALLS_AT_A_TIME)
        self._actions = LibvirtConnections(uri, name="actions", most=_CALLS_AT_A_TIME)
        self._kills = LibvirtConnections(uri, name="kills", most=_CALLS_AT_A_TIME)
        self._events = EventHub(uri, clock=clock)
        self._job_queries: dict[str, asyncio.Task[bool]] = {}
        self._migrations = LibvirtMigrations(
            uri, clock=clock, events=self._events, jobs=self._jobs, urgent=self._kills, status=self.get_guest
        )
        self._guest_jobs = GuestJobs(uri, clock=clock, urgent=self._kills)

    async def capacity(self) -> HostCapacity:
        """The host's processors and memory, and QEMU's version."""
        cpu = await self._read_cpu()

        def read(connection: VirConnect) -> HostCapacity:
            # Of all nodes: `getInfo` leaves out memory that was plugged in later.
            memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
            version = int(connection.getVersion())
            return HostCapacity(
                vcpus=int(connection.getInfo()[2]),
                memory_mib=int(memory[libvirt.VIR_NODE_MEMORY_STATS_TOTAL]) // 1024,
                hypervisor="kvm" if self._platform.accelerator is Accelerator.KVM else "qemu",
                hypervisor_version=f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}",
                cpu=cpu,
            )

        return await self._queries.call("ask the host's capacity", read, deadline_s=QUERY_DEADLINE_S)

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        """Every guest that Leeward defined here, in order of uid."""
        observed = await self._queries.call("list guests", observe_all, deadline_s=QUERY_DEADLINE_S)
        return tuple(await asyncio.gather(*(self._with_migrating(each) for each in observed)))

    async def get_guest(self, uid: str) -> GuestStatus:
        """One guest; state ABSENT when not known."""
        return await self._with_migrating(await self._observe(uid))

    async def paused_by_io_error(self) -> tuple[str, ...]:
        """The guests that QEMU paused because their disk could not be read or written, in order of uid."""
        observed = await self._queries.call("list paused guests", observe_all, deadline_s=QUERY_DEADLINE_S)
        return tuple(each.status.uid for each in observed if each.paused_by_io_error)

    def events(self) -> AsyncIterator[GuestStatus]:
        """Each change of a guest's state from now on; first, and after libvirtd came back, every guest may be told."""
        return self._changes(self._events.subscribe())

    async def start(self, spec: GuestSpec, *, disks: GuestDisks, console: ConsoleFiles, paused: bool = False) -> None:
        """Define (anew) and start; no error when it is in memory. After an error nothing is left defined."""
        xml = domain_xml(spec, disks=disks, console=console, platform=self._platform)
        start = partial(actions.start, uid=spec.uid, xml=xml, paused=paused)
        await self._actions.call(f"start guest {spec.uid}", start, deadline_s=START_DEADLINE_S)

    async def shut_down(self, uid: str) -> None:
        """Press the ACPI power button. Returns at once. No error when it does not run."""
        await self._actions.call(
            f"shut down guest {uid}", lambda it: actions.press_power_button(it, uid), deadline_s=ACTION_DEADLINE_S
        )

    async def kill(self, uid: str) -> None:
        """End the guest at once. No error when it does not run."""
        await self._kills.call(f"kill guest {uid}", lambda it: actions.kill(it, uid), deadline_s=KILL_DEADLINE_S)

    async def reboot(self, uid: str, mode: RebootMode, *, timeout_s: float = 0.0) -> bool:
        """SOFT: ask by ACPI, wait at most `timeout_s`, and say whether the guest was restarted. HARD: reset at once."""
        if mode is RebootMode.HARD:
            await self._actions.call(
                f"reset guest {uid}", lambda it: actions.reset(it, uid), deadline_s=ACTION_DEADLINE_S
            )
            return True
        await self._events.connected(timeout_s=QUERY_DEADLINE_S)
        rebooted = self._events.watch_reboot(uid)
        try:
            await self._actions.call(
                f"reboot guest {uid}", lambda it: actions.reboot_softly(it, uid), deadline_s=ACTION_DEADLINE_S
            )
            async with asyncio.timeout(timeout_s):
                return await rebooted.wait()
        except TimeoutError:
            return False
        finally:
            self._events.unwatch_reboot(uid, rebooted)

    async def probe(self, uid: str, probe: GuestProbe) -> str:
        """Why the guest does not answer; nothing when it does."""
        if probe.kind is ProbeKind.TCP_PORT:
            return await connect_tcp(probe.host, probe.port)
        return await self._jobs.call(
            f"ping the agent of guest {uid}", lambda it: ping_agent(it, uid), deadline_s=PROBE_DEADLINE_S
        )

    async def pause(self, uid: str) -> None:
        """Halt its processors. No error when they are."""
        await self._actions.call(f"pause guest {uid}", lambda it: actions.pause(it, uid), deadline_s=ACTION_DEADLINE_S)

    async def inject_nmi(self, uid: str) -> None:
        """Send it a non-maskable interrupt."""
        await self._actions.call(
            f"interrupt guest {uid}", lambda it: actions.inject_nmi(it, uid), deadline_s=ACTION_DEADLINE_S
        )

    async def suspend(self, spec: GuestSpec, *, to: Path) -> None:
        """Write its memory to `to` and end it. When it fails or is cancelled the guest goes on."""
        await self._guest_jobs.suspend(spec, to=to)

    async def wake(self, spec: GuestSpec, *, memory: Path, disks: GuestDisks, console: ConsoleFiles) -> None:
        """Bring it back from `memory`, PAUSED. After a failure it has no process here."""
        xml = domain_xml(spec, disks=disks, console=console, platform=self._platform)
        await self._guest_jobs.wake(spec, memory=memory, disks=disks, console=console, xml=xml)

    async def backup(self, spec: GuestSpec, *, disks: GuestDisks, to: Path) -> bool:
        """Copy the root disk of a guest in memory to `to`; whether it was quiesced."""
        return await self._guest_jobs.backup(spec, disks=disks, to=to)

    def attach_console(
        self, uid: str, *, console: ConsoleFiles, input: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """What the guest writes, after an empty item once attached; ends when it stops."""
        return serial.attach(console.socket, uid=uid, input=input)

    async def resume(self, uid: str) -> None:
        """Let a paused guest run on, also one that an I/O error paused: QEMU then repeats the failed request."""
        await self._actions.call(
            f"resume guest {uid}", lambda it: actions.resume(it, uid), deadline_s=ACTION_DEADLINE_S
        )

    async def undefine(self, uid: str) -> None:
        """Forget a stopped guest. No error when not known. Raises HypervisorError when it runs."""
        await self._actions.call(
            f"undefine guest {uid}", lambda it: actions.undefine(it, uid), deadline_s=ACTION_DEADLINE_S
        )

    def migrate(
        self,
        spec: GuestSpec,
        *,
        destination: str,
        transport: Transport,
        folders: FolderMove,
        limits: MigrationLimits,
    ) -> AsyncIterator[MigrationProgress]:
        """Live-migrate; yields progress at least five times a second, ends with COMPLETED, FAILED or CANCELLED.

        Joins the migration of this guest when one runs already. Leaving the iterator does not stop it. The destination
        gets `spec.run_epoch` in the domain's metadata. Raises HypervisorError when the outcome is not known.
        """
        return self._migrations.begin(
            spec, destination=destination, transport=transport, folders=folders, limits=limits
        )

    def follow_migration(self, uid: str, *, limits: MigrationLimits) -> AsyncIterator[MigrationProgress]:
        """As `migrate`, for a migration that runs already, whoever started it; starts none.

        When none runs, the outcome is read from the guest: COMPLETED if it is gone from here, else FAILED.
        """
        return self._migrations.follow(uid, limits=limits)

    async def is_split(self, uid: str) -> bool:
        """Whether post-copy broke, so that this host holds only a part of the guest's memory."""
        return await self._migrations.is_split(uid)

    async def cancel_migration(self, uid: str) -> None:
        """Ask a running migration to stop. No error when none runs. Raises FailedPrecondition when it is too late."""
        await self._migrations.cancel(uid)

    async def set_run_epoch(self, uid: str, epoch: int) -> None:
        """Note the epoch by which the guest runs from now on in its definition. No error when it is not known."""
        await self._actions.call(
            f"note the run epoch of guest {uid}",
            lambda it: actions.set_run_epoch(it, uid, epoch),
            deadline_s=ACTION_DEADLINE_S,
        )

    async def definition(self, uid: str) -> str:
        """The domain's XML, to be kept for people; empty when it is not known."""
        return await self._queries.call(
            f"read the definition of guest {uid}",
            lambda it: actions.definition(it, uid),
            deadline_s=QUERY_DEADLINE_S,
        )

    async def close(self) -> None:
        """Let go of libvirt. Guests run on, and migrations are carried through by libvirtd."""
        self._migrations.detach()
        for task in list(self._job_queries.values()):
            task.cancel()
        await self._events.close()
        for connection in (self._queries, self._jobs, self._actions, self._kills):
            connection.close()

    async def _read_cpu(self) -> CpuReport:
        """Asked once: it is the same as long as libvirt and QEMU are."""
        if self._cpu is None:
            self._cpu = await self._jobs.call(
                "ask for CPU models", lambda it: read_cpu(it, self._platform.accelerator), deadline_s=ACTION_DEADLINE_S
            )
        return self._cpu

    async def _observe(self, uid: str) -> Observed:
        return await self._queries.call(
            f"look at guest {uid}", lambda it: observe(it, uid), deadline_s=QUERY_DEADLINE_S
        )

    async def _with_migrating(self, observed: Observed) -> GuestStatus:
        status = observed.status
        if status.state not in (GuestState.RUNNING, GuestState.PAUSED) or status.migrating:
            return status
        return replace(status, migrating=True) if await self._job_runs(status.uid) else status

    async def _job_runs(self, uid: str) -> bool:
        query = self._job_queries.get(uid)
        if query is None:
            query = asyncio.get_running_loop().create_task(self._ask_job(uid))
            self._job_queries[uid] = query
            query.add_done_callback(lambda _: self._job_queries.pop(uid, None))
        await asyncio.wait([query], timeout=JOB_QUERY_PATIENCE_S)
        if query.done() and not query.cancelled():
            return query.result()
        return self._migrations.running(uid)

    async def _ask_job(self, uid: str) -> bool:
        try:
            return await self._jobs.call(
                f"ask for jobs of guest {uid}", lambda it: is_migrating(it, uid), deadline_s=ACTION_DEADLINE_S
            )
        except HypervisorError as error:
            # Its QEMU hangs, or libvirtd ended just now. Its state is known all the same, and worth telling.
            _log.warning("cannot ask whether a guest migrates", uid=uid, error=error.message)
            return False

    async def _changes(self, subscription: Subscription) -> AsyncIterator[GuestStatus]:
        told: dict[str, GuestStatus] = {}
        while True:
            changed = await subscription.next()
            if subscription.closed:
                return
            try:
                statuses = await self._statuses(changed, known=list(told))
            except HypervisorError as error:
                _log.warning("cannot look at guests that changed", error=error.message)
                for uid in [None] if changed is None else changed:
                    subscription.add(uid)
                await self._clock.sleep(EVENT_RETRY_S)
                continue
            for status in statuses:
                if status.migrating:
                    asyncio.get_running_loop().call_later(MIGRATING_LOOK_AGAIN_S, subscription.add, status.uid)
                if told.get(status.uid) != status:
                    told[status.uid] = status
                    yield status

    async def _statuses(self, uids: set[str] | None, *, known: list[str]) -> list[GuestStatus]:
        if uids is not None:
            return [await self.get_guest(uid) for uid in sorted(uids)]
        present = {status.uid: status for status in await self.list_guests()}
        return [*present.values(), *(absent(uid) for uid in known if uid not in present)]
