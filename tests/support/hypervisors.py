"""Two hosts on which guests run, simulated or real, behind one face, for tests that hold for both."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import pytest

from leeward.agent.types import DiskFormat, Firmware, GuestSpec, GuestState, GuestStatus, Nic
from leeward.clock import SystemClock
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.simulated.driver import SimulatedHypervisor
from leeward_agent.hypervisors.simulated.files import read_record, record_path
from leeward_agent.hypervisors.simulated.guest import SimulatedTiming
from leeward_agent.hypervisors.simulated.host import SimulatedWorld
from leeward_agent.ports import FolderMove, Hypervisor, MigrationTransport
from leeward_lab.guest.commands import run_tool
from leeward_lab.guest.record import boots_in, read_guest_record, ticks_in
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.hosts.cluster import Cluster
from leeward_lab.hosts.host import Host

NODES = ("host-a", "host-b")
POOL = "pool-1"
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")


def guest_spec(uid: str = "one", *, run_epoch: int = 1) -> GuestSpec:
    """A small guest; its name holds what XML and shells find special."""
    return GuestSpec(
        uid=uid,
        name=f"projects/<p&q>/instances/{uid} 'x'",
        vcpus=1,
        memory_mib=96,
        disk_gib=1,
        pool_id=POOL,
        image_digest="0" * 64,
        image_format=DiskFormat.RAW,
        run_epoch=run_epoch,
        nics=(Nic(mac="52:54:00:12:34:56"),),
    )


async def until(holds: Callable[[], Awaitable[bool]], *, within_s: float, what: str) -> None:
    """Wait until it holds; fail the test after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not await holds():
        if time.monotonic() > deadline_s:
            pytest.fail(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(0.05)


class HypervisorLab(ABC):
    """Two hosts with a shared pool."""

    directory: Path
    drivers: dict[str, Hypervisor]
    # At this rate a guest that has booted takes seconds, so that something can be done to it meanwhile.
    slow_mib_s: int

    @property
    def a(self) -> Hypervisor:
        return self.drivers["host-a"]

    @property
    def b(self) -> Hypervisor:
        return self.drivers["host-b"]

    async def start(self, hypervisor: Hypervisor, spec: GuestSpec, *, paused: bool = False) -> None:
        """Start a guest, with a fresh disk if it has none."""
        if not self.disk(spec.uid).exists():
            self.make_disk(spec.uid)
        await hypervisor.start(spec, disks=self.disks(spec), console=self.console_files(spec.uid), paused=paused)

    async def boot(self, hypervisor: Hypervisor, spec: GuestSpec) -> None:
        """Start it and wait until it writes."""
        await self.start(hypervisor, spec)
        await self.ticks_on(spec.uid)

    async def ticks_on(self, uid: str) -> None:
        """Wait until the guest's console shows a line that it did not show before."""
        before = len(ticks_in(self.console(uid)))

        async def ticked() -> bool:
            return len(ticks_in(self.console(uid))) > before

        await until(ticked, within_s=70, what=f"a new line on the console of {uid}")

    def console(self, uid: str) -> str:
        path = self.console_log(uid)
        return path.read_text(errors="replace") if path.exists() else ""

    def boots(self, uid: str) -> list[int]:
        """The boots that the console shows."""
        return boots_in(self.console(uid))

    async def becomes(
        self, hypervisor: Hypervisor, state: GuestState, *, uid: str = "one", within_s: float = 20
    ) -> GuestStatus:
        """Wait for a guest's state, ignoring that libvirt may not answer meanwhile."""

        async def is_it() -> bool:
            try:
                return (await hypervisor.get_guest(uid)).state is state
            except HypervisorError:
                return False

        await until(is_it, within_s=within_s, what=f"{uid} {state}")
        return await hypervisor.get_guest(uid)

    def disk(self, uid: str) -> Path:
        return self.directory / "pool" / f"{uid}.qcow2"

    def console_log(self, uid: str) -> Path:
        return self.directory / "pool" / f"{uid}.log"

    def console_files(self, uid: str) -> ConsoleFiles:
        return ConsoleFiles(log=self.console_log(uid), socket=self.directory / f"{uid}.serial")

    def disks(self, spec: GuestSpec) -> GuestDisks:
        """Those that the spec asks for, side by side; but for the root disk they are made by the test."""
        pool = self.directory / "pool"
        return GuestDisks(
            root=self.disk(spec.uid),
            data=tuple(pool / f"{spec.uid}-data-{number}.qcow2" for number, _ in enumerate(spec.data_disks_gib)),
            seed=pool / f"{spec.uid}-seed.iso" if spec.cloud_init else None,
            rescue=pool / f"{spec.uid}-rescue.qcow2" if spec.rescue else None,
            firmware_vars=pool / f"{spec.uid}-vars.fd" if spec.firmware is Firmware.UEFI else None,
        )

    def memory(self, uid: str) -> Path:
        """Where the guest's memory goes when it is suspended."""
        return self.directory / "pool" / f"{uid}.memory"

    @property
    def folders(self) -> FolderMove:
        """Where a migrating guest's disks are on the two hosts."""
        return FolderMove(self.directory / "pool", self.directory / "pool")

    @abstractmethod
    async def has_agent(self, uid: str) -> None:
        """Wait until something in the guest answers for its file systems."""

    @abstractmethod
    async def shows_disk(self, uid: str, name: str, *, boots: int) -> None:
        """Wait until the guest says that it sees another guest's disk of so many boots."""

    @abstractmethod
    def check_copy(self, disk: Path, *, boots: int) -> None:
        """The copy of a guest's disk needs no other file, and holds what the guest had written."""

    @abstractmethod
    def ignoring_acpi(self, uid: str) -> AbstractContextManager[None]:
        """While it lasts, a guest that was just started on host-a does not react to its power button."""

    @abstractmethod
    def make_disk(self, uid: str) -> None: ...

    @abstractmethod
    def make_file(self, disk: Path, *, like: Path | None = None) -> None:
        """An empty disk, or one that is based on another."""

    @abstractmethod
    def record(self, disk: Path) -> tuple[int, int]:
        """How often a guest booted from a disk that none uses now, and its last line."""

    @abstractmethod
    def transport(self, to: str) -> MigrationTransport: ...

    @abstractmethod
    async def restart_driver(self, node: str) -> None:
        """As when the agent ends and starts again."""

    @abstractmethod
    async def crash_guest(self, node: str, uid: str) -> None:
        """End its process from outside."""

    @abstractmethod
    async def power_off(self, node: str) -> None: ...

    @abstractmethod
    async def start_on_frail_storage(self, spec: GuestSpec) -> None:
        """Start a guest on host-a with its disk on storage that can be made to fail."""

    @abstractmethod
    async def fail_storage(self) -> None: ...

    @abstractmethod
    async def restore_storage(self) -> None: ...

    @abstractmethod
    def break_start(self, uid: str) -> None:
        """Make its next start fail."""


class SimulatedLab(HypervisorLab):
    """Hosts in memory. That no guest ever has its disk on two of them is checked all along."""

    slow_mib_s = 64

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "pool").mkdir()
        self.holders: dict[str, list[str]] = {}
        self.world = SimulatedWorld(on_run_change=self._run_changed)
        timing = SimulatedTiming(tick_s=0.1)
        hosts = [self.world.add_host(node, clock=SystemClock(), timing=timing, writes_files=True) for node in NODES]
        self.drivers = {host.node: SimulatedHypervisor(host) for host in hosts}

    @contextmanager
    def ignoring_acpi(self, uid: str) -> Iterator[None]:
        ignored_by = self.world.hosts["host-a"].ignores_acpi
        ignored_by.add(uid)
        yield
        ignored_by.discard(uid)

    def make_disk(self, uid: str) -> None:
        self.disk(uid).touch()

    def make_file(self, disk: Path, *, like: Path | None = None) -> None:
        disk.touch()
        if like is not None and record_path(like).exists():
            shutil.copy(record_path(like), record_path(disk))

    def record(self, disk: Path) -> tuple[int, int]:
        record = read_record(disk)
        return record.boots, record.lines

    async def has_agent(self, uid: str) -> None:
        assert uid not in self.world.hosts["host-a"].without_agent

    async def shows_disk(self, uid: str, name: str, *, boots: int) -> None:
        assert self.record(self.disk(uid))[0] == boots

    def check_copy(self, disk: Path, *, boots: int) -> None:
        assert self.record(disk)[0] == boots

    def transport(self, to: str) -> MigrationTransport:
        return MigrationTransport(*[Path("/nonexistent")] * 5)

    async def restart_driver(self, node: str) -> None:
        await self.drivers[node].close()
        self.drivers[node] = SimulatedHypervisor(self.world.hosts[node])

    async def crash_guest(self, node: str, uid: str) -> None:
        self.world.hosts[node].guest_crash(uid)

    async def power_off(self, node: str) -> None:
        self.world.hosts[node].power_off()

    async def start_on_frail_storage(self, spec: GuestSpec) -> None:
        await self.start(self.a, spec)

    async def fail_storage(self) -> None:
        self.world.hosts["host-a"].lose_storage(POOL)

    async def restore_storage(self) -> None:
        self.world.hosts["host-a"].restore_storage(POOL)

    def break_start(self, uid: str) -> None:
        self.world.hosts["host-a"].start_error = f"no such disk: {self.disk(uid)}"

    def _run_changed(self, uid: str, node: str, running: bool, run_epoch: int) -> None:
        holders = self.holders.setdefault(uid, [])
        if running:
            assert not holders, f"{uid} starts on {node} while it has its disk on {holders}"
            holders.append(node)
        else:
            holders.remove(node)


class LibvirtLab(HypervisorLab):
    """Hosts made of namespaces, each with its own libvirtd."""

    slow_mib_s = 16

    def __init__(self, cluster: Cluster) -> None:
        self.directory = cluster.directory
        self.hosts: dict[str, Host] = {node: cluster.add_host(node) for node in NODES}
        self.drivers = {}

    async def power_on(self) -> None:
        for node, host in self.hosts.items():
            await host.start()
            self.drivers[node] = self._driver(host)

    def ignoring_acpi(self, uid: str) -> AbstractContextManager[None]:
        # Its firmware does so anyway.
        return nullcontext()

    def make_disk(self, uid: str) -> None:
        build_guest_image(self.disk(uid), cache_dir=default_cache_dir())

    def make_file(self, disk: Path, *, like: Path | None = None) -> None:
        source = ["8M"] if like is None else []
        backing: list[str | Path] = [] if like is None else ["-b", like, "-F", "qcow2"]
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", *backing, disk, *source], timeout_s=20)

    def record(self, disk: Path) -> tuple[int, int]:
        record = read_guest_record(disk)
        return record.boots, record.lines

    async def has_agent(self, uid: str) -> None:
        async def connected() -> bool:
            return "org.qemu.guest_agent.0' state='connected'" in await self.a.definition(uid)

        await until(connected, within_s=40, what=f"the agent of {uid}")

    async def shows_disk(self, uid: str, name: str, *, boots: int) -> None:
        async def shown() -> bool:
            return bool(re.search(rf"disk {name} sectors=\d+ boots={boots} ", self.console(uid)))

        await until(shown, within_s=40, what=f"{name} with {boots} boots on the console of {uid}")

    def check_copy(self, disk: Path, *, boots: int) -> None:
        info = json.loads(run_tool(["qemu-img", "info", "--output=json", disk], timeout_s=20))
        assert "backing-filename" not in info
        run_tool(["qemu-img", "check", "-q", disk], timeout_s=20)
        record = read_guest_record(disk)
        assert record.boots == boots
        assert record.missing() == ()

    def make_seed(self, spec: GuestSpec, user_data: str) -> None:
        """A NoCloud seed, as a FAT volume: the guest reads both kinds."""
        seed = self.disks(spec).seed
        assert seed is not None
        text = self.directory / "user-data"
        text.write_text(user_data + "\n")
        with seed.open("wb") as file:
            file.truncate(1024 * 1024)
        run_tool(["mkfs.vfat", "-n", "cidata", seed], timeout_s=20)
        run_tool(["mcopy", "-i", seed, text, "::user-data"], timeout_s=20)

    def transport(self, to: str) -> MigrationTransport:
        memory, disk = self.directory / "memory.sock", self.directory / "disk.sock"
        return MigrationTransport(self.hosts[to].libvirt_socket, memory, disk, memory, disk)

    async def restart_driver(self, node: str) -> None:
        await self.drivers[node].close()
        self.drivers[node] = self._driver(self.hosts[node])

    async def crash_guest(self, node: str, uid: str) -> None:
        os.kill(self.qemu_pid(uid), signal.SIGKILL)

    def qemu_pid(self, uid: str) -> int:
        """The guest's process; the test fails unless there is exactly one."""
        pids = [
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _is_qemu(path, self.disk(uid))
        ]
        assert len(pids) == 1, f"QEMUs of {uid}: {pids}"
        return pids[0]

    async def power_off(self, node: str) -> None:
        await self.hosts[node].power_off()

    async def start_on_frail_storage(self, spec: GuestSpec) -> None:
        """On a small file system, which can be filled: the guest's first write finds no space."""
        self.make_disk(spec.uid)
        volume = self.directory / "volume"
        with volume.open("wb") as file:
            file.truncate(24 * 1024 * 1024)
        self._frail.mkdir()
        disk = self._frail / "disk.qcow2"
        await self._on_host(
            f"mkfs.ext4 -q {volume} && mount -o loop {volume} {self._frail}"
            f" && qemu-img create -q -f qcow2 -b {self.disk(spec.uid)} -F qcow2 {disk}"
        )
        await self.a.start(spec, disks=GuestDisks(disk), console=self.console_files(spec.uid))

    async def fail_storage(self) -> None:
        await self._on_host(f"! dd if=/dev/zero of={self._frail}/filler bs=64k status=none 2>/dev/null")

    async def restore_storage(self) -> None:
        await self._on_host(f"rm {self._frail}/filler")

    @property
    def _frail(self) -> Path:
        return self.directory / "frail"

    async def _on_host(self, script: str) -> None:
        await self.hosts["host-a"].run(["sh", "-c", script])

    def break_start(self, uid: str) -> None:
        self.disk(uid).write_bytes(b"not a disk")

    def _driver(self, host: Host) -> Hypervisor:
        from leeward_agent.hypervisors.libvirt.domain_xml import Accelerator
        from leeward_agent.hypervisors.libvirt.driver import LibvirtHypervisor

        uri = f"qemu:///system?socket={host.libvirt_socket}"
        return LibvirtHypervisor(clock=SystemClock(), accelerator=Accelerator.TCG, uri=uri, uefi_code=UEFI_CODE)


@asynccontextmanager
async def simulated_lab(directory: Path) -> AsyncIterator[SimulatedLab]:
    """Two simulated hosts."""
    lab = SimulatedLab(directory)
    try:
        yield lab
    finally:
        for node in NODES:
            lab.world.hosts[node].power_off()
            await lab.drivers[node].close()


@asynccontextmanager
async def libvirt_lab(directory: Path) -> AsyncIterator[LibvirtLab]:
    """Two real hosts; skips the test where they cannot be had."""
    if os.geteuid() != 0 or shutil.which("libvirtd") is None:
        pytest.skip("needs root, libvirt and QEMU")
    async with await Cluster.create(directory, f"hypervisor-{os.getpid()}") as cluster:
        lab = LibvirtLab(cluster)
        try:
            await lab.power_on()
            yield lab
        finally:
            for driver in lab.drivers.values():
                await driver.close()


def _is_qemu(cmdline: Path, disk: Path) -> bool:
    try:
        command = cmdline.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"qemu-system" in command.split(b"\0")[0] and str(disk).encode() in command
