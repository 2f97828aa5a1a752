"""What is done to a guest through libvirt. Everything here blocks, runs in a thread, and may be repeated."""

from collections.abc import Callable
from dataclasses import replace

import libvirt

from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.connection import VirConnect, VirDomain
from leeward_agent.hypervisors.libvirt.domain_xml import (
    METADATA_NAMESPACE,
    METADATA_PREFIX,
    GuestMetadata,
    metadata_for_libvirt,
    parse_metadata,
)
from leeward_agent.hypervisors.libvirt.status import find

# The firmware's variables lie beside the guest's disk, and stay with it.
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)


def start(connection: VirConnect, *, uid: str, xml: str, paused: bool) -> None:
    """Define the domain anew and start it, unless it is active. After a failure nothing stays defined."""
    domain = find(connection, uid)
    if domain is not None and domain.isActive():
        return
    domain = connection.defineXML(xml)
    try:
        # A saved state left by somebody's hand belongs to an older epoch of the disk.
        flags = libvirt.VIR_DOMAIN_START_FORCE_BOOT | (libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        domain.createWithFlags(flags)
    except libvirt.libvirtError as failure:
        if domain.isActive():
            return
        try:
            domain.undefineFlags(UNDEFINE)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"start guest {uid}: {failure}; its definition stays behind: {error}") from failure
        raise


def press_power_button(connection: VirConnect, uid: str) -> None:
    """Ask the guest by ACPI to power off; nothing when it does not run."""
    domain = find(connection, uid)
    if domain is not None:
        _unless_inactive(domain, lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))


def kill(connection: VirConnect, uid: str) -> None:
    """End QEMU: SIGTERM, and SIGKILL ten seconds later if that does not help (libvirt's own way)."""
    domain = find(connection, uid)
    if domain is not None:
        _unless_inactive(domain, domain.destroy)


def reboot_softly(connection: VirConnect, uid: str) -> None:
    """Ask the guest by ACPI to power off; libvirt resets the machine once it has."""
    _known(connection, uid).reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)


def reset(connection: VirConnect, uid: str) -> None:
    """Reset the machine; the guest is not asked."""
    _known(connection, uid).reset()


def pause(connection: VirConnect, uid: str) -> None:
    """Halt the guest's processors; nothing when they are."""
    domain = _known(connection, uid)
    try:
        domain.suspend()
    except libvirt.libvirtError:
        if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            raise


def inject_nmi(connection: VirConnect, uid: str) -> None:
    """Send the guest a non-maskable interrupt."""
    _known(connection, uid).injectNMI(0)


def resume(connection: VirConnect, uid: str) -> None:
    """Let a paused guest execute; nothing when it does already."""
    domain = _known(connection, uid)
    try:
        domain.resume()
    except libvirt.libvirtError:
        if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            raise
    metadata = _metadata(domain)
    if metadata.woken:
        _set_metadata(domain, replace(metadata, woken=False), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def undefine(connection: VirConnect, uid: str) -> None:
    """Forget a domain that is not active; nothing when it is not known."""
    domain = find(connection, uid)
    if domain is None:
        return
    if domain.isActive():
        # libvirt would keep it running as a domain that vanishes when it stops.
        raise HypervisorError(f"guest {uid} runs, so it cannot be undefined")
    domain.undefineFlags(UNDEFINE)


def set_run_epoch(connection: VirConnect, uid: str, epoch: int) -> None:
    """Note the epoch in the domain's metadata, the running one's and the persistent one's."""
    domain = find(connection, uid)
    if domain is None:
        return
    metadata = _metadata(domain)
    if metadata.run_epoch == epoch:
        return
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    _set_metadata(domain, replace(metadata, run_epoch=epoch), flags)


def _metadata(domain: VirDomain) -> GuestMetadata:
    return parse_metadata(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE))


def _set_metadata(domain: VirDomain, metadata: GuestMetadata, flags: int) -> None:
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        metadata_for_libvirt(metadata),
        METADATA_PREFIX,
        METADATA_NAMESPACE,
        flags,
    )


def definition(connection: VirConnect, uid: str) -> str:
    """The domain's XML, or nothing when it is not known."""
    domain = find(connection, uid)
    return str(domain.XMLDesc()) if domain is not None else ""


def abort_job(connection: VirConnect, uid: str) -> None:
    """Abort the guest's running job; nothing when there is none."""
    domain = find(connection, uid)
    if domain is None:
        return
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            raise


def _known(connection: VirConnect, uid: str) -> VirDomain:
    domain = find(connection, uid)
    if domain is None:
        raise HypervisorError(f"guest {uid} is not known to this host")
    return domain


def _unless_inactive(domain: VirDomain, action: Callable[[], object]) -> None:
    try:
        action()
    except libvirt.libvirtError as error:
        gone = error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
        if not gone and domain.isActive():
            raise
