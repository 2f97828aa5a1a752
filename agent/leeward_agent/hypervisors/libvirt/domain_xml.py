"""Domain XML of a guest: pure functions, built as a tree, so that no value can ever become markup.

A domain is recognised as Leeward's by an element in its metadata, which also holds the run epoch it was started with.
"""

import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from leeward.agent.types import Firmware, GuestSpec
from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.libvirt.devices_xml import add_devices, place_devices

METADATA_NAMESPACE = "https://leeward.dev/xmlns/guest/1"
METADATA_PREFIX = "leeward"
METADATA_TAG_NAME = "guest"
_METADATA_TAG = f"{{{METADATA_NAMESPACE}}}{METADATA_TAG_NAME}"
_DOMAIN_UUIDS = uuid.uuid5(uuid.NAMESPACE_URL, METADATA_NAMESPACE)
_NAME_PREFIX = "leeward-"

# The x86-64-v2 baseline, which current distributions need and QEMU emulates in full. Measured under TCG, a guest boots
# as fast as with qemu64, and a second slower with `max`.
EMULATED_CPU_MODEL = "Nehalem"

ET.register_namespace(METADATA_PREFIX, METADATA_NAMESPACE)


class Accelerator(StrEnum):
    """How guest instructions are executed; the value is libvirt's domain type."""

    KVM = "kvm"  # By the processor itself.
    TCG = "qemu"  # Translated by QEMU, where KVM cannot be used.


@dataclass(frozen=True, slots=True)
class GuestMetadata:
    """What Leeward keeps in a domain: whose it is, and the run epoch it was started with.

    `woken` marks one that was restored from its memory and has not executed since: libvirt shows it as it shows the
    destination of a migration.
    """

    uid: str
    name: str
    run_epoch: int
    woken: bool = False


def domain_name(uid: str) -> str:
    """The libvirt name of a guest's domain."""
    return _NAME_PREFIX + uid


def uid_of_domain_name(name: str) -> str | None:
    """The uid of the guest whose domain has this name; None for a domain that is not Leeward's."""
    return name.removeprefix(_NAME_PREFIX) if name.startswith(_NAME_PREFIX) else None


def domain_uuid(uid: str) -> uuid.UUID:
    """The libvirt UUID of a guest's domain: the same on every host, decided by the uid alone."""
    return uuid.uuid5(_DOMAIN_UUIDS, uid)


@dataclass(frozen=True, slots=True)
class Platform:
    """What this host runs guests with. `uefi_code` is its OVMF image, where it has one."""

    accelerator: Accelerator
    uefi_code: Path | None = None


def domain_xml(spec: GuestSpec, *, disks: GuestDisks, console: ConsoleFiles, platform: Platform) -> str:
    """The domain of `spec` with its disks and serial console. Raises HypervisorError when it needs UEFI in vain."""
    accelerator = platform.accelerator
    domain = ET.Element("domain", type=accelerator.value)
    _text(domain, "name", domain_name(spec.uid))
    _text(domain, "uuid", str(domain_uuid(spec.uid)))
    _text(domain, "title", spec.name)
    ET.SubElement(domain, "metadata").append(_metadata_element(metadata_of(spec)))
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus), placement="static")
    _add_boot(domain, spec, disks=disks, platform=platform)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _add_cpu(domain, spec.cpu_model, accelerator)
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    add_devices(ET.SubElement(domain, "devices"), spec, disks=disks, console=console)
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
            uid=element.attrib["uid"],
            name=element.attrib["name"],
            run_epoch=int(element.attrib["run_epoch"]),
            woken="woken" in element.attrib,
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


def with_files(xml: str, *, disks: GuestDisks, console: ConsoleFiles) -> str:
    """The same domain with its files where they are on this host. Raises HypervisorError when it has other disks."""
    try:
        domain = ET.fromstring(xml)
    except ET.ParseError as error:
        raise HypervisorError(f"domain XML cannot be read: {error}") from error
    devices, variables = domain.find("devices"), domain.find("os/nvram")
    if devices is None or (variables is not None) != (disks.firmware_vars is not None):
        raise HypervisorError("domain XML is of another guest: it has other disks, or another firmware")
    if variables is not None:
        variables.text = str(disks.firmware_vars)
    place_devices(devices, disks=disks, console=console)
    return ET.tostring(domain, encoding="unicode")


def metadata_for_libvirt(metadata: GuestMetadata) -> str:
    """The element as `virDomainSetMetadata` wants it: without its namespace, which is given beside it."""
    element = _metadata_element(metadata)
    element.tag = METADATA_TAG_NAME
    return ET.tostring(element, encoding="unicode")


def _metadata_element(metadata: GuestMetadata) -> ET.Element:
    element = ET.Element(_METADATA_TAG, uid=metadata.uid, name=metadata.name, run_epoch=str(metadata.run_epoch))
    if metadata.woken:
        element.set("woken", "yes")
    return element


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _add_boot(domain: ET.Element, spec: GuestSpec, *, disks: GuestDisks, platform: Platform) -> None:
    os_element = ET.SubElement(domain, "os")
    # Under TCG with SeaBIOS a q35 machine boots about a second faster than pc.
    _text(os_element, "type", "hvm", arch="x86_64", machine=spec.machine.value)
    if spec.firmware is Firmware.UEFI:
        if platform.uefi_code is None or disks.firmware_vars is None:
            raise HypervisorError(f"guest {spec.uid} boots by UEFI, and this host has no OVMF")
        _text(os_element, "loader", str(platform.uefi_code), readonly="yes", type="pflash")
        _text(os_element, "nvram", str(disks.firmware_vars))
    # The first disk: the rescue image, where there is one.
    ET.SubElement(os_element, "boot", dev="hd")


def _add_cpu(domain: ET.Element, model: str, accelerator: Accelerator) -> None:
    if accelerator is Accelerator.KVM and not model:
        ET.SubElement(domain, "cpu", mode="host-model", check="partial")
        return
    # What QEMU emulates is not limited by the host's processor, so there is nothing to compare with.
    check = "partial" if accelerator is Accelerator.KVM else "none"
    cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check=check)
    _text(cpu, "model", model or EMULATED_CPU_MODEL, fallback="forbid")
