"""Domain XML of a guest: pure functions, built as a tree, so that no value can ever become markup.

A domain is recognised as Leeward's by an element in its metadata, which also holds the run epoch it was started with.
"""

import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from leeward.agent.types import GuestSpec, Nic
from leeward.errors import HypervisorError

METADATA_NAMESPACE = "https://leeward.dev/xmlns/guest/1"
METADATA_PREFIX = "leeward"
METADATA_TAG_NAME = "guest"
_METADATA_TAG = f"{{{METADATA_NAMESPACE}}}{METADATA_TAG_NAME}"
_DOMAIN_UUIDS = uuid.uuid5(uuid.NAMESPACE_URL, METADATA_NAMESPACE)
_NAME_PREFIX = "leeward-"
_ENTROPY_SOURCE = "/dev/urandom"

# The x86-64-v2 baseline, which current distributions need and QEMU emulates in full. Measured under TCG, a guest boots
# as fast as with qemu64, and a second slower with `max`.
_EMULATED_CPU_MODEL = "Nehalem"

ET.register_namespace(METADATA_PREFIX, METADATA_NAMESPACE)


class Accelerator(StrEnum):
    """How guest instructions are executed; the value is libvirt's domain type."""

    KVM = "kvm"  # By the processor itself.
    TCG = "qemu"  # Translated by QEMU, where KVM cannot be used.


@dataclass(frozen=True, slots=True)
class GuestMetadata:
    """What Leeward keeps in a domain: whose it is, and the run epoch it was started with."""

    uid: str
    name: str
    run_epoch: int


def domain_name(uid: str) -> str:
    """The libvirt name of a guest's domain."""
    return _NAME_PREFIX + uid


def uid_of_domain_name(name: str) -> str | None:
    """The uid of the guest whose domain has this name; None for a domain that is not Leeward's."""
    return name.removeprefix(_NAME_PREFIX) if name.startswith(_NAME_PREFIX) else None


def domain_uuid(uid: str) -> uuid.UUID:
    """The libvirt UUID of a guest's domain: the same on every host, decided by the uid alone."""
    return uuid.uuid5(_DOMAIN_UUIDS, uid)


def domain_xml(spec: GuestSpec, *, disk: Path, console_log: Path, accelerator: Accelerator) -> str:
    """The domain of `spec` with its qcow2 root disk and a serial console that is appended to `console_log`."""
    domain = ET.Element("domain", type=accelerator.value)
    _text(domain, "name", domain_name(spec.uid))
    _text(domain, "uuid", str(domain_uuid(spec.uid)))
    _text(domain, "title", spec.name)
    ET.SubElement(domain, "metadata").append(_metadata_element(metadata_of(spec)))
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus), placement="static")
    os_element = ET.SubElement(domain, "os")
    # Under TCG with SeaBIOS a q35 machine boots about a second faster than pc.
    _text(os_element, "type", "hvm", arch="x86_64", machine="q35")
    ET.SubElement(os_element, "boot", dev="hd")
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _add_cpu(domain, accelerator)
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    _add_devices(domain, spec, disk=disk, console_log=console_log)
    ET.SubElement(domain, "seclabel", type="none")
    return ET.tostring(domain, encoding="unicode")


def metadata_of(spec: GuestSpec) -> GuestMetadata:
    """What is kept in the domain of `spec`."""
    return GuestMetadata(uid=spec.uid, name=spec.name, run_epoch=spec.run_epoch)


def parse_metadata(element_xml: str) -> GuestMetadata:
    """The metadata from the element that libvirt returns for our namespace. Raises HypervisorError on anything else."""
    try:
        element = ET.fromstring(element_xml)
        # libvirt hands the element back without its namespace prefix, so the tag may or may not carry the namespace.
        if element.tag not in (_METADATA_TAG, "guest"):
            raise HypervisorError(f"domain metadata is <{element.tag}>, not a Leeward guest")
        return GuestMetadata(
            uid=element.attrib["uid"], name=element.attrib["name"], run_epoch=int(element.attrib["run_epoch"])
        )
    except (ET.ParseError, KeyError, ValueError) as error:
        raise HypervisorError(f"domain metadata cannot be read: {error!r} in {element_xml[:200]!r}") from error


def with_metadata(xml: str, metadata: GuestMetadata) -> str:
    """The same domain with other Leeward metadata: what a migration gives the destination."""
    try:
        domain = ET.fromstring(xml)
    except ET.ParseError as error:
        raise HypervisorError(f"domain XML cannot be read: {error}") from error
    holder = domain.find("metadata")
    if holder is None:
        holder = ET.SubElement(domain, "metadata")
    for element in holder.findall(_METADATA_TAG):
        holder.remove(element)
    holder.append(_metadata_element(metadata))
    return ET.tostring(domain, encoding="unicode")


def metadata_for_libvirt(metadata: GuestMetadata) -> str:
    """The element as `virDomainSetMetadata` wants it: without its namespace, which is given beside it."""
    element = _metadata_element(metadata)
    element.tag = METADATA_TAG_NAME
    return ET.tostring(element, encoding="unicode")


def _metadata_element(metadata: GuestMetadata) -> ET.Element:
    return ET.Element(_METADATA_TAG, uid=metadata.uid, name=metadata.name, run_epoch=str(metadata.run_epoch))


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _add_cpu(domain: ET.Element, accelerator: Accelerator) -> None:
    if accelerator is Accelerator.KVM:
        ET.SubElement(domain, "cpu", mode="host-model", check="partial")
        return
    cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
    _text(cpu, "model", _EMULATED_CPU_MODEL, fallback="forbid")


def _add_devices(domain: ET.Element, spec: GuestSpec, *, disk: Path, console_log: Path) -> None:
    devices = ET.SubElement(domain, "devices")
    _add_disk(devices, disk)
    ET.SubElement(devices, "controller", type="usb", model="none")
    for nic in spec.nics:
        _add_nic(devices, nic)
    serial = ET.SubElement(devices, "serial", type="file")
    # Appending keeps the log over a restart of the guest; a reader's offset stays valid.
    ET.SubElement(serial, "source", path=str(console_log), append="on")
    ET.SubElement(serial, "target", port="0")
    ET.SubElement(devices, "memballoon", model="virtio")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", _ENTROPY_SOURCE, model="random")


def _add_disk(devices: ET.Element, path: Path) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(
        disk,
        "driver",
        name="qemu",
        type="qcow2",
        # Nothing of the guest's disk may stay in this host's page cache: another host reads it after a migration.
        cache="none",
        io="threads",
        discard="unmap",
        # Storage trouble pauses the guest, which is resumed when the storage is back, instead of failing inside it.
        error_policy="stop",
        rerror_policy="stop",
    )
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev="vda", bus="virtio")


def _add_nic(devices: ET.Element, nic: Nic) -> None:
    interface = ET.SubElement(devices, "interface", type="bridge" if nic.bridge else "user")
    ET.SubElement(interface, "mac", address=nic.mac)
    if nic.bridge:
        ET.SubElement(interface, "source", bridge=nic.bridge)
    ET.SubElement(interface, "model", type="virtio")
    # Guests boot from their disk; without the network boot ROM the firmware is done sooner.
    ET.SubElement(interface, "rom", enabled="no")
