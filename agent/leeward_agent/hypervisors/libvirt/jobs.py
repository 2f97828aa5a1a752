"""What takes a guest's memory or disk some time to write: suspending, waking, backups. Everything here blocks.

Each may be repeated after a failure or a crash of the agent, whose jobs libvirtd goes on with alone.
"""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import libvirt
import structlog

from leeward.errors import HypervisorError
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks
from leeward_agent.hypervisors.libvirt.actions import UNDEFINE
from leeward_agent.hypervisors.libvirt.connection import VirConnect, VirDomain
from leeward_agent.hypervisors.libvirt.domain_xml import GuestMetadata, with_files, with_metadata
from leeward_agent.hypervisors.libvirt.status import find

# How long the guest's own agent may take to answer. While it freezes, the guest's writers wait.
_GUEST_AGENT_TIMEOUT_S = 5
_THAW_ATTEMPTS = 3

_OPERATIONS = (
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE,
    libvirt.VIR_DOMAIN_JOB_OPERATION_RESTORE,
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP,
)

_log = structlog.get_logger(__name__)


def save(connection: VirConnect, uid: str, *, to: Path) -> None:
    """Write the guest's memory to `to` and end it. When it fails or is aborted, it goes on and the file is gone."""
    _active(connection, uid).saveFlags(str(to), None, 0)


def restore(
    connection: VirConnect,
    *,
    memory: Path,
    xml: str,
    metadata: GuestMetadata,
    disks: GuestDisks,
    console: ConsoleFiles,
) -> None:
    """Define the guest by `xml`, and bring it back paused from its memory, with its files where they are here.

    It keeps the devices that it was saved with, which the guest knows; `xml` counts from its next start on. After a
    failure it is defined only if it was before.
    """
    before = find(connection, metadata.uid)
    if before is not None and before.isActive():
        return
    saved = connection.saveImageGetXMLDesc(str(memory), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    live = with_metadata(with_files(saved, disks=disks, console=console), replace(metadata, woken=True))
    domain = connection.defineXML(xml)
    try:
        connection.restoreFlags(str(memory), live, libvirt.VIR_DOMAIN_SAVE_PAUSED)
    except libvirt.libvirtError:
        if before is None and not domain.isActive():
            domain.undefineFlags(UNDEFINE)
        raise


def begin_backup(connection: VirConnect, uid: str, *, disk: str, to: Path) -> bool:
    """Begin to copy the disk as it is at one moment to `to`, a qcow2 that must not exist; answers whether quiesced.

    The copy has no backing file. The guest's file systems are frozen for that moment if its agent answers in time.
    """
    domain = _active(connection, uid)
    _abort_orphan(domain)
    xml = _backup_xml(_disk_names(domain), disk=disk, to=to)
    quiesced = _freeze(domain, uid)
    try:
        domain.backupBegin(xml, None, 0)
    finally:
        if quiesced:
            _thaw(domain, uid)
    return quiesced


def backup_runs(connection: VirConnect, uid: str) -> bool:
    """Whether the backup is still being written. Raises HypervisorError when it has failed, or its guest ended."""
    domain = _active(connection, uid)
    if _backup_job(domain):
        return True
    completed = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
    if completed.get(libvirt.VIR_DOMAIN_JOB_OPERATION) != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
        raise HypervisorError(f"back up guest {uid}: the job has gone without a trace")
    if completed.get("type") != libvirt.VIR_DOMAIN_JOB_COMPLETED:
        why = completed.get(libvirt.VIR_DOMAIN_JOB_ERRMSG, "it was aborted")
        raise HypervisorError(f"back up guest {uid}: {why}")
    return False


def abort(connection: VirConnect, uid: str) -> None:
    """End a job of this kind that runs; nothing when none does. The guest goes on."""
    domain = find(connection, uid)
    if domain is None:
        return
    try:
        if domain.jobStats().get(libvirt.VIR_DOMAIN_JOB_OPERATION) in _OPERATIONS:
            domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            raise


def _active(connection: VirConnect, uid: str) -> VirDomain:
    domain = find(connection, uid)
    if domain is None or not domain.isActive():
        raise HypervisorError(f"guest {uid} does not run on this host")
    return domain


def _backup_job(domain: VirDomain) -> bool:
    stats = domain.jobStats()
    running = stats.get("type", 0) in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
    return running and stats.get(libvirt.VIR_DOMAIN_JOB_OPERATION) == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP


def _abort_orphan(domain: VirDomain) -> None:
    """A backup that an earlier life of this agent began: nobody waits for its file any more."""
    if _backup_job(domain):
        domain.abortJob()


def _disk_names(domain: VirDomain) -> list[str]:
    targets = ET.fromstring(domain.XMLDesc()).findall("devices/disk/target")
    return [target.get("dev", "") for target in targets]


def _backup_xml(names: list[str], *, disk: str, to: Path) -> str:
    backup = ET.Element("domainbackup", mode="push")
    disks = ET.SubElement(backup, "disks")
    for name in names:
        if name != disk:
            ET.SubElement(disks, "disk", name=name, backup="no")
            continue
        element = ET.SubElement(disks, "disk", name=name, backup="yes", type="file")
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "target", file=str(to))
    return ET.tostring(backup, encoding="unicode")


def _freeze(domain: VirDomain, uid: str) -> bool:
    if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING or not _agent_is_connected(domain):
        return False
    try:
        domain.agentSetResponseTimeout(_GUEST_AGENT_TIMEOUT_S)
        domain.fsFreeze()
    except libvirt.libvirtError as error:
        # It may still be doing it, or have been frozen before by an agent that then crashed.
        _log.info("a guest's file systems cannot be frozen", uid=uid, error=str(error))
        _try_thaw(domain)
        return False
    return True


def _thaw(domain: VirDomain, uid: str) -> None:
    error = _try_thaw(domain)
    for _ in range(_THAW_ATTEMPTS - 1):
        if error is None:
            return
        error = _try_thaw(domain)
    if error is not None:
        raise HypervisorError(f"the file systems of guest {uid} were frozen and cannot be thawed: {error}")


def _try_thaw(domain: VirDomain) -> libvirt.libvirtError | None:
    try:
        domain.fsThaw()
    except libvirt.libvirtError as error:
        return error
    return None


def _agent_is_connected(domain: VirDomain) -> bool:
    targets = ET.fromstring(domain.XMLDesc()).findall("devices/channel/target[@type='virtio']")
    return any(target.get("state") == "connected" for target in targets)
