"""The calls to libvirt that a live migration consists of. Everything here blocks, and runs in a thread."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree as ET

import libvirt

from leeward.agent.types import Escalation, MigrationLimits
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.actions import abort_job
from leeward_agent.hypervisors.libvirt.connection import VirConnect, VirDomain
from leeward_agent.hypervisors.libvirt.domain_xml import GuestMetadata, with_metadata
from leeward_agent.hypervisors.libvirt.migration import too_late
from leeward_agent.hypervisors.libvirt.status import PostCopy, find, post_copy
from leeward_agent.ports import FolderMove, NativeTransport, Transport

# UNSAFE: libvirt accepts only network file systems as shared; that ours is, the pool's marker file has shown, and
# cache='none' keeps its content out of the page cache. PEER2PEER: libvirtd carries it through if this agent ends.
_ALWAYS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_UNSAFE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
# INC: only what the guest has written over its image, which the destination has too. SYNCHRONOUS_WRITES: once a disk
# was gone through, the guest's writes wait for the destination, so that a guest that writes fast comes to an end too.
_COPY_DISKS = libvirt.VIR_MIGRATE_NON_SHARED_INC | libvirt.VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES

# Of the guest's processor time, in percent, at each step of auto-converge. QEMU's own 10 takes 17 passes to the end.
_THROTTLE_STEP = 20


@dataclass(frozen=True, slots=True)
class Destination:
    """The addresses that libvirt is given: of the other libvirt, and for the guest's memory and disks.

    The same two are given to both QEMUs: the destination's listens there, the source's connects.
    """

    libvirt_uri: str
    memory_uri: str
    disks_uri: str
    tls: bool = False
    connections: int = 0


def destination_of(transport: Transport) -> Destination:
    """Through the sockets of the agents, or past them. Raises HypervisorError where the hosts differ in their paths."""
    if isinstance(transport, NativeTransport):
        # Without a port, the destination's libvirt chooses from `migration_port_min` of its qemu.conf onwards.
        address = f"tcp://{transport.host}"
        return Destination(
            libvirt_uri=transport.libvirt_uri,
            memory_uri=address,
            disks_uri=address,
            tls=transport.tls,
            connections=transport.connections,
        )
    if (transport.memory_socket, transport.disk_socket) != (
        transport.destination_memory_socket,
        transport.destination_disk_socket,
    ):
        raise HypervisorError("libvirt has one path for a migration's socket on both hosts")
    return Destination(
        libvirt_uri=f"qemu+unix:///system?socket={quote(str(transport.libvirt_socket))}",
        memory_uri=f"unix://{quote(str(transport.memory_socket))}",
        disks_uri=f"unix://{quote(str(transport.disk_socket))}",
    )


def perform(
    connection: VirConnect,
    *,
    metadata: GuestMetadata,
    to: Destination,
    folders: FolderMove,
    limits: MigrationLimits,
) -> None:
    """Migrate the guest, or take its broken post-copy up again; returns when it runs there and is forgotten here."""
    domain = _known(connection, metadata.uid)
    live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    persistent = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    parameters: dict[str, object] = {
        libvirt.VIR_MIGRATE_PARAM_URI: to.memory_uri,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: relocated(with_metadata(live, metadata), folders),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: relocated(with_metadata(persistent, metadata), folders),
    }
    if limits.bandwidth_mib_s > 0:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = limits.bandwidth_mib_s
        if limits.escalation is Escalation.POST_COPY:
            # In the background only: pages that the guest waits for go first.
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = limits.bandwidth_mib_s
    if limits.copies_disks:
        parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = to.disks_uri
    flags = _flags(limits) | (libvirt.VIR_MIGRATE_TLS if to.tls else 0)
    # QEMU cannot switch to post-copy with several connections ("Postcopy is not yet compatible with multifd").
    if to.connections > 1 and limits.escalation is not Escalation.POST_COPY:
        flags |= libvirt.VIR_MIGRATE_PARALLEL
        parameters[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = to.connections
    if limits.escalation is not Escalation.NONE:
        parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL] = _THROTTLE_STEP
        parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT] = _THROTTLE_STEP
    if limits.max_downtime_ms > 0 and post_copy(connection, metadata.uid) is PostCopy.NONE:
        domain.migrateSetMaxDowntime(limits.max_downtime_ms)
    if post_copy(connection, metadata.uid) is PostCopy.BROKEN:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    domain.migrateToURI3(to.libvirt_uri, parameters, flags)


def _flags(limits: MigrationLimits) -> int:
    flags: int = _ALWAYS
    if limits.copies_disks:
        flags |= _COPY_DISKS
    if limits.escalation is not Escalation.NONE:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if limits.escalation is Escalation.POST_COPY:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    return flags


def relocated(xml: str, folders: FolderMove) -> str:
    """The same domain with the files of the guest's own folder where the destination has that.

    What libvirt has found out about the files beneath (`backingStore`) is left out: it is found out there.
    """
    if folders.here == folders.there:
        return xml
    try:
        domain = ET.fromstring(xml)
    except ET.ParseError as error:
        raise HypervisorError(f"domain XML cannot be read: {error}") from error
    for disk in domain.iterfind("devices/disk"):
        for chain in disk.findall("backingStore"):
            disk.remove(chain)
    # Only what lies in the pool: consoles and sockets have the same paths on all hosts.
    for holder in (*domain.iterfind("devices/disk"), *domain.iterfind("os/nvram")):
        for element in holder.iter():
            for name, value in element.attrib.items():
                element.set(name, _moved(value, folders))
            if element.text is not None:
                element.text = _moved(element.text, folders)
    return ET.tostring(domain, encoding="unicode")


def _moved(value: str, folders: FolderMove) -> str:
    """A path directly in the guest's folder, as the destination has it; anything else as it is."""
    path = Path(value.strip())
    return str(folders.there / path.name) if path.parent == folders.here and path.is_absolute() else value


def abort(connection: VirConnect, uid: str) -> None:
    """Abort the guest's migration; nothing when there is none. Raises FailedPrecondition in post-copy."""
    if post_copy(connection, uid) is not PostCopy.NONE:
        raise too_late(uid, "the guest's memory is on two hosts")
    abort_job(connection, uid)


def start_post_copy(connection: VirConnect, uid: str) -> None:
    """Let the guest go on at the destination now, before its memory is there. No way leads back."""
    _known(connection, uid).migrateStartPostCopy()


def halt(connection: VirConnect, uid: str) -> None:
    """Halt the guest's processors while its memory is copied; it runs on where the migration ends."""
    _known(connection, uid).suspend()


def _known(connection: VirConnect, uid: str) -> VirDomain:
    domain = find(connection, uid)
    if domain is None:
        raise HypervisorError(f"guest {uid} is not known to this host")
    return domain
