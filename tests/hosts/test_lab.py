"""The laboratory itself: its hosts die, lose network and storage as real ones do, and leave nothing behind."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from leeward.clock import SystemClock
from leeward_agent.hypervisors.libvirt.probe import find_accelerator
from leeward_lab.guest.commands import LabError
from leeward_lab.guest.record import Tick, boots_in, read_guest_record, ticks_in
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.hosts import state
from leeward_lab.hosts.cluster import Cluster, sweep
from leeward_lab.hosts.host import Host
from leeward_lab.hosts.processes import run, spawn
from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, so needs root")]

MIGRATE = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_UNSAFE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)


class Guest:
    """One guest, its disk and console in the pool, on whichever host it is started."""

    def __init__(self, pool: Path, image: Path, kind: str) -> None:
        self.disk = pool / "guest.qcow2"
        self.console_log = pool / "console.log"
        self._kind = kind
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image), str(self.disk)]
        subprocess.run(command, check=True, timeout=30)

    @property
    def xml(self) -> str:
        return f"""
        <domain type='{self._kind}'>
          <name>guest</name><uuid>6c656577-6172-4420-8c61-620000000001</uuid>
          <memory unit='MiB'>96</memory><vcpu>1</vcpu>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <features><acpi/><apic/></features>
          <devices>
            <disk type='file' device='disk'>
              <driver name='qemu' type='qcow2' cache='none' error_policy='stop'/>
              <source file='{self.disk}'/><target dev='vda' bus='virtio'/>
            </disk>
            <controller type='usb' model='none'/>
            <serial type='file'><source path='{self.console_log}' append='on'/><target port='0'/></serial>
            <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
            <video><model type='none'/></video>
          </devices>
        </domain>"""

    @property
    def console(self) -> str:
        return self.console_log.read_text(errors="replace") if self.console_log.exists() else ""

    async def ticks(self, *, boot: int, more: int = 1) -> Tick:
        """Wait for that many more lines of a boot than there are now."""
        wanted = len(self._ticks(boot)) + more

        async def ticked() -> bool:
            return len(self._ticks(boot)) >= wanted

        await until(ticked, what=f"{more} ticks of boot {boot}; console:\n{self.console}", timeout_s=60)
        return self._ticks(boot)[-1]

    def _ticks(self, boot: int) -> list[Tick]:
        return [tick for tick in ticks_in(self.console) if tick.boot == boot]


@contextlib.contextmanager
def connected(host: Host) -> Iterator[libvirt.virConnect]:
    connection = libvirt.open(f"qemu+unix:///system?socket={host.libvirt_socket}")
    try:
        yield connection
    finally:
        # After a power-off there is nobody to say good-bye to.
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = await Cluster.create(tmp_path / "c", "lab")
    try:
        yield made
    finally:
        await made.destroy()
        assert leftovers(made.directory, made.net.bridge) == []


@pytest.fixture
def guest(cluster: Cluster, domain_type: str) -> Guest:
    image = build_guest_image(cluster.directory / "image.raw", cache_dir=default_cache_dir())
    return Guest(cluster.pool, image, domain_type)


@pytest.fixture
async def domain_type() -> str:
    return (await find_accelerator(clock=SystemClock())).value


def leftovers(directory: Path, bridge: str) -> list[str]:
    """What on the machine still belongs to a cluster: processes, links, mounts, its entry in the registry."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True, timeout=10).stdout)
    found = [f"link {link['ifname']}" for link in links if link["ifname"].startswith(bridge)]
    found += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(directory) in line]
    found += [f"registered {each.cluster_id}" for each in state.registered() if each.directory == str(directory)]
    for process in Path("/proc").glob("[0-9]*"):
        # Of a process that has ended meanwhile, or is not yet reaped, there is no list of mounts.
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            mounts = (process / "mounts").read_text()
            if str(directory) in command or str(directory) in mounts:
                found.append(f"process {process.name} {command}")
    return found


async def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    async def check() -> bool:
        return condition()

    await until(check, what=what, timeout_s=timeout_s)


async def test_move(cluster: Cluster, guest: Guest) -> None:
    """A guest boots, moves while it runs, and dies with its host; the disk holds every line it ever acknowledged."""
    a, b = cluster.add_host("host-a"), cluster.add_host("host-b")
    await asyncio.gather(a.start(), b.start())
    with connected(a) as on_a, connected(b) as on_b:
        domain = on_a.defineXML(guest.xml)
        await asyncio.to_thread(domain.create)
        before = await guest.ticks(boot=1, more=2)

        target = f"qemu+unix:///system?socket={b.libvirt_socket}"
        stream = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{cluster.directory}/migration.sock"}
        await asyncio.to_thread(domain.migrateToURI3, target, stream, MIGRATE)
        assert on_a.listAllDomains() == []
        assert on_b.lookupByName("guest").isActive()
        moved = await guest.ticks(boot=1)
        assert moved.line > before.line

        emulator = (await b.run(["pidof", "qemu-system-x86_64"])).stdout.split()
        assert len(emulator) == 1
        started = asyncio.get_running_loop().time()
        await b.power_off()
        assert asyncio.get_running_loop().time() - started < 2
        assert not b.running

        acknowledged = ticks_in(guest.console)[-1].line
        record = read_guest_record(guest.disk)
        assert record.lines >= acknowledged
        assert record.missing() == ()

        domain = on_a.defineXML(guest.xml)
        await asyncio.to_thread(domain.create)
        again = await guest.ticks(boot=2)
        assert again.line > record.lines
        assert boots_in(guest.console) == [1, 2]

        domain.shutdown()
        await eventually(lambda: not domain.isActive(), "the guest obeying its power button")


async def test_storage(cluster: Cluster, guest: Guest) -> None:
    """A host that loses the pool pauses its guests, which go on when it is back; other hosts notice nothing."""
    a = cluster.add_host("host-a", detachable_pool=True)
    b = cluster.add_host("host-b", libvirt=False)
    await asyncio.gather(a.start(), b.start())
    with connected(a) as on_a:
        domain = on_a.defineXML(guest.xml)
        await asyncio.to_thread(domain.create)
        await guest.ticks(boot=1, more=2)
        await b.run(["qemu-img", "info", "-U", "-f", "qcow2", str(guest.disk)])
        locked = await b.run(["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(guest.disk)], check=False)
        assert "lock" in locked.stderr, "QEMU's image lock must hold between hosts"

        await a.detach_storage()
        await eventually(
            lambda: domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR],
            "the guest pausing on an I/O error",
        )
        await b.run(["ls", str(cluster.pool)])
        await a.attach_storage()
        domain.resume()
        await guest.ticks(boot=1, more=2)

        await a.detach_storage(hang=True)
        await a.power_off()
    assert read_guest_record(guest.disk).missing() == ()
    assert ticks_in(guest.console)[-1].line <= read_guest_record(guest.disk).lines


async def test_network(cluster: Cluster, tmp_path: Path) -> None:
    """Hosts know each other by name; a cut cable or a lost route cuts exactly what it should; clusters do not meet."""
    a, b = cluster.add_host("host-a", libvirt=False), cluster.add_host("host-b", libvirt=False)
    await asyncio.gather(a.start(), b.start())

    async def reaches(source: Host, target: str) -> bool:
        return (await source.run(["busybox", "ping", "-c1", "-W1", target], check=False)).returncode == 0

    def heals(source: Host, target: str) -> Callable[[], Awaitable[bool]]:
        return lambda: reaches(source, target)

    assert (await a.run(["hostname"])).stdout.strip() == "host-a"
    assert await reaches(a, "host-b")
    assert await reaches(a, "outside")

    await a.partition_from(b.address)
    assert not await reaches(a, "host-b")
    assert await reaches(a, cluster.gateway)
    await a.heal_from(b.address)
    await until(heals(a, "host-b"), what="host-b reachable again", timeout_s=10)

    await b.partition()
    assert not await reaches(a, "host-b")
    await b.heal()
    await until(heals(a, "host-b"), what="host-b reachable again", timeout_s=10)

    async with await Cluster.create(tmp_path / "other", "lab") as other:
        stranger = other.add_host("host-a", libvirt=False)
        await stranger.start()
        assert stranger.address != a.address
        assert not await reaches(stranger, b.address)


async def test_reboot(cluster: Cluster) -> None:
    """Powering off ends every program at once; powering on is another boot, with the same disks and an empty /run."""
    host = cluster.add_host("host-a")
    await host.start()
    assert (await host.run(["cat", "/proc/sys/kernel/random/boot_id"])).stdout.strip() == host.boot_id
    first = host.boot_id
    kept = host.directory / "local/kept"
    program = await host.spawn(["sh", "-c", "echo started; exec sleep 1000"], name="program")
    await eventually(lambda: "started" in program.tail(), "the program's log")
    await host.run(["sh", "-c", f"touch {kept} /run/forgotten"])
    with pytest.raises(LabError, match="program is running already"):
        await host.spawn(["true"], name="program")

    await host.power_off()
    assert not program.process.alive()
    with pytest.raises(LabError, match="powered off"):
        await host.run(["true"])

    await host.start()
    assert host.boot_id != first
    assert kept.exists()
    assert (await host.run(["test", "-e", "/run/forgotten"], check=False)).returncode == 1


OWNER = """
import asyncio, sys
from pathlib import Path
from leeward_lab.hosts.cluster import Cluster

async def main():
    cluster = await Cluster.create(Path(sys.argv[1]), "owned", detached=sys.argv[2] == "detached")
    host = cluster.add_host("host-a")
    await host.start()
    await host.spawn(["sleep", "1000"], name="program")
    print("ready", flush=True)
    if sys.argv[2] != "detached":
        await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_owner(tmp_path: Path) -> None:
    """A cluster whose owner is killed dies with it, and the next sweeps up; a detached one stays until destroyed."""
    kept, orphaned = tmp_path / "kept", tmp_path / "orphaned"
    await run([sys.executable, "-c", OWNER, str(kept), "detached"], timeout_s=60)
    attached = Cluster.attach(kept)
    try:
        log = tmp_path / "owner.log"
        owner = spawn([sys.executable, "-c", OWNER, str(orphaned), "owned"], name="owner", log=log)
        try:
            await eventually(lambda: "ready" in owner.tail(), "the owner's cluster")
            lost = Cluster.attach(orphaned)
            assert lost.hosts["host-a"].running
        finally:
            await owner.process.kill()
        await eventually(lambda: not lost.hosts["host-a"].running, "the host dying with its owner", timeout_s=5)

        assert lost.net.cluster_id in await sweep()
        assert leftovers(orphaned, lost.net.bridge) == []
        assert attached.hosts["host-a"].spawned("program").process.alive()
        assert "host-a" in (await attached.hosts["host-a"].run(["virsh", "hostname"])).stdout
    finally:
        await attached.destroy()
    assert leftovers(kept, attached.net.bridge) == []
    with pytest.raises(LabError, match="no cluster"):
        Cluster.attach(kept)


def test_image_is_reproducible(tmp_path: Path) -> None:
    """The same sources give the same bytes, so the image's content digest means something."""
    first = build_guest_image(tmp_path / "a.raw", cache_dir=default_cache_dir())
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/kernel").symlink_to(default_cache_dir() / "kernel")
    second = build_guest_image(tmp_path / "b.raw", cache_dir=tmp_path / "cache")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 25 << 20
