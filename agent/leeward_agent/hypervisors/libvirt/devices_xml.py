"""The devices of a guest in its domain XML: pure functions."""

import xml.etree.ElementTree as ET
from pathlib import Path

from leeward.agent.types import GuestSpec, Nic
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks

_ENTROPY_SOURCE = "/dev/urandom"
_GUEST_AGENT = "org.qemu.guest_agent.0"
# The one that both machine types can have with libvirt 9.0; QEMU's iTCO on q35 needs libvirt 9.1.
_WATCHDOG = "i6300esb"
_DISK_NAMES = "abcdefghijklmnopqrstuvwxyz"


def add_devices(devices: ET.Element, spec: GuestSpec, *, disks: GuestDisks, console: ConsoleFiles) -> None:
    """Disks in the order of `GuestDisks`, network, serial console, guest agent, watchdog, random source."""
    for index, (path, is_seed) in enumerate(_in_order(disks)):
        _add_disk(devices, path, name=f"vd{_DISK_NAMES[index]}", is_seed=is_seed)
    ET.SubElement(devices, "controller", type="usb", model="none")
    for nic in spec.nics:
        _add_nic(devices, nic)
    _add_serial(devices, console)
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=_GUEST_AGENT)
    # It does nothing until something in the guest has armed it.
    ET.SubElement(devices, "watchdog", model=_WATCHDOG, action="reset")
    ET.SubElement(devices, "memballoon", model="virtio")
    rng = ET.SubElement(devices, "rng", model="virtio")
    ET.SubElement(rng, "backend", model="random").text = _ENTROPY_SOURCE


def place_devices(devices: ET.Element, *, disks: GuestDisks, console: ConsoleFiles) -> None:
    """Change where the files of a domain are that `add_devices` made. Raises HypervisorError when they are others."""
    sources = devices.findall("disk/source")
    paths = [path for path, _ in _in_order(disks)]
    if len(sources) != len(paths):
        raise HypervisorError(f"domain XML is of another guest: it has {len(sources)} disks, not {len(paths)}")
    for source, path in zip(sources, paths, strict=True):
        source.set("file", str(path))
    # libvirt repeats the first serial port as a console.
    for port in (*devices.findall("serial"), *devices.findall("console")):
        for source in port.findall("source"):
            source.set("path", str(console.socket))
        for log in port.findall("log"):
            log.set("file", str(console.log))


def root_disk_name(disks: GuestDisks) -> str:
    """What the root disk is called in the domain."""
    return "vda" if disks.rescue is None else "vdb"


def _in_order(disks: GuestDisks) -> list[tuple[Path, bool]]:
    """Every disk, and whether it is the seed."""
    qcow2 = [*((disks.rescue,) if disks.rescue is not None else ()), disks.root, *disks.data]
    seed = [(disks.seed, True)] if disks.seed is not None else []
    return [*((path, False) for path in qcow2), *seed]


def _add_disk(devices: ET.Element, path: Path, *, name: str, is_seed: bool) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(
        disk,
        "driver",
        name="qemu",
        type="raw" if is_seed else "qcow2",
        # Nothing of the guest's disk may stay in this host's page cache: another host reads it after a migration.
        cache="none",
        io="threads",
        discard="unmap",
        # Storage trouble pauses the guest, which is resumed when the storage is back, instead of failing inside it.
        error_policy="stop",
        rerror_policy="stop",
    )
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=name, bus="virtio")
    if is_seed:
        ET.SubElement(disk, "readonly")


def _add_nic(devices: ET.Element, nic: Nic) -> None:
    interface = ET.SubElement(devices, "interface", type="bridge" if nic.bridge else "user")
    ET.SubElement(interface, "mac", address=nic.mac)
    if nic.bridge:
        ET.SubElement(interface, "source", bridge=nic.bridge)
    ET.SubElement(interface, "model", type="virtio")
    # Guests boot from their disk; without the network boot ROM the firmware is done sooner.
    ET.SubElement(interface, "rom", enabled="no")


def _add_serial(devices: ET.Element, console: ConsoleFiles) -> None:
    """A socket for one who attaches, and a log that is written whether or not anybody does (tried with QEMU 7.2)."""
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=str(console.socket))
    # Appending keeps the log over a restart of the guest; a reader's offset stays valid.
    ET.SubElement(serial, "log", file=str(console.log), append="on")
    ET.SubElement(serial, "target", port="0")
