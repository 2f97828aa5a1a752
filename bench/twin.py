"""The same guest without Leeward: a second libvirt domain on the same hosts, with the same devices and image."""

import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

from leeward.errors import FailedPrecondition
from leeward_lab.hosts.host import Host
from leeward_lab.hosts.processes import Completed
from leeward_lab.hosts.waiting import until
from leeward_lab.real.cluster import RealCluster

NAME = "bench-twin"
_BOOT_S = 90.0
_MIGRATE_S = 60.0


class Twin:
    """A domain that only libvirt knows; Leeward leaves alone what does not bear its mark."""

    def __init__(self, cluster: RealCluster, *, python: str) -> None:
        self._cluster = cluster
        self._python = python
        self._directory = cluster.lab.pool / "bench"

    async def start(self, host: str, *, like: str, image: Path) -> None:
        """Boot it on a host with the devices of the domain `like`, from a disk of its own over the same image."""
        self._directory.mkdir()
        disk, console = self._directory / "twin.qcow2", self._directory / "twin.log"
        there = self._cluster.host(host)
        await there.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image), str(disk), "1G"])
        described = (await virsh(there, "dumpxml", "--migratable", "--inactive", like)).stdout
        definition = self._directory / "twin.xml"
        definition.write_text(as_twin(described, name=NAME, disk=disk, console=console))
        await virsh(there, "define", str(definition))
        await virsh(there, "start", NAME)

        async def ticks() -> bool:
            return console.exists() and "tick" in console.read_text(errors="replace")

        await until(ticks, what="the twin's first tick", timeout_s=_BOOT_S)

    async def migrate_by_unix(self, source: str, destination: str, *, bandwidth_mib_s: int) -> float:
        """Move it over unix sockets without anything between libvirt, QEMU and their peers; the seconds it took."""
        socket = self._cluster.host(destination).libvirt_socket
        memory = self._directory / "twin.memory"
        return await self._migrate(
            source, f"qemu+unix:///system?socket={socket}", f"unix://{memory}", bandwidth_mib_s=bandwidth_mib_s
        )

    async def migrate_by_tcp(self, source: str, destination: str, *, bandwidth_mib_s: int) -> float:
        """Move it over plain TCP on the hosts' network; the seconds it took."""
        return await self._migrate(source, f"qemu+tcp://{destination}/system", "-", bandwidth_mib_s=bandwidth_mib_s)

    async def _migrate(self, source: str, libvirt_uri: str, memory_uri: str, *, bandwidth_mib_s: int) -> float:
        command = [self._python, "-m", "bench.bare", NAME, libvirt_uri, memory_uri, str(bandwidth_mib_s)]
        environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
        told = await self._cluster.host(source).run(command, timeout_s=_MIGRATE_S, env=environment)
        return float(told.stdout)


def as_twin(described: str, *, name: str, disk: Path, console: Path) -> str:
    """The definition of a guest of Leeward's, as that of one that is none: same devices, files of its own."""
    domain = ET.fromstring(described)
    for tag in ("metadata", "title"):
        for element in domain.findall(tag):
            domain.remove(element)
    _required(domain, "name").text = name
    _required(domain, "uuid").text = str(uuid.uuid4())
    _required(domain, "devices/disk/source").set("file", str(disk))
    for port in (*domain.iterfind("devices/serial"), *domain.iterfind("devices/console")):
        _required(port, "source").set("path", str(console.with_suffix(".serial")))
        _required(port, "log").set("file", str(console))
    for channel in domain.findall("devices/channel"):
        _required(domain, "devices").remove(channel)  # Its socket bears the name of Leeward's guest.
    return ET.tostring(domain, encoding="unicode")


def _required(domain: ET.Element, path: str) -> ET.Element:
    found = domain.find(path)
    if found is None:
        raise FailedPrecondition(f"the guest's domain has no {path}")
    return found


async def virsh(host: Host, *words: str) -> Completed:
    """Run virsh against the host's libvirtd."""
    return await host.run(["virsh", "-c", "qemu:///system", *words])
