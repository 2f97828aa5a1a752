"""Reading a guest's state from libvirt. Everything here blocks, and runs in a thread."""

from dataclasses import dataclass, replace
from enum import StrEnum

import libvirt

from leeward.agent.types import GuestState, GuestStatus, StopCause
from leeward_agent.hypervisors.libvirt.connection import VirConnect, VirDomain
from leeward_agent.hypervisors.libvirt.domain_xml import (
    METADATA_NAMESPACE,
    domain_uuid,
    parse_metadata,
    uid_of_domain_name,
)

# A state that is not listed counts as running: what may run must not be started a second time.
_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: GuestState.PAUSED,
    # The guest is powering off, or QEMU is about to restart it: its process is still there.
    libvirt.VIR_DOMAIN_SHUTDOWN: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_PMSUSPENDED: GuestState.PAUSED,
    # Kept in memory, not executing, after its kernel panicked.
    libvirt.VIR_DOMAIN_CRASHED: GuestState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: GuestState.STOPPED,
}

# libvirtd forgets the reason when it restarts: "unknown" is then all it says, which tells nothing about the stop.
_STOP_CAUSES = {
    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: StopCause.NONE,
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: StopCause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: StopCause.REQUESTED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: StopCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: StopCause.MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: StopCause.REQUESTED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: StopCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT: StopCause.NONE,
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: StopCause.CRASHED,
}

# A half of a guest whose memory is on two hosts moves, also when the connection between them broke: nobody may let it
# run, nor take it for whole.
_SPLIT = frozenset(
    {
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
    }
)
_POST_COPY = frozenset(
    {
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    }
)
_MOVING = _SPLIT | _POST_COPY | {(libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)}

_MIGRATION_OPERATIONS = (libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


@dataclass(frozen=True, slots=True)
class Observed:
    """A guest as libvirt shows it without asking QEMU."""

    status: GuestStatus
    paused_by_io_error: bool = False

    @property
    def may_migrate(self) -> bool:
        """Whether it has a process, so that a migration job may be running."""
        return self.status.state in (GuestState.RUNNING, GuestState.PAUSED)


class PostCopy(StrEnum):
    """How far a guest is whose memory follows it."""

    NONE = "NONE"  # It has not been switched over.
    RUNNING = "RUNNING"  # It executes on the destination, and fetches its memory.
    BROKEN = "BROKEN"  # The connection broke: each host holds a part of its memory.


def absent(uid: str) -> GuestStatus:
    """A guest that this host does not know."""
    return GuestStatus(uid=uid, name="", state=GuestState.ABSENT)


def find(connection: VirConnect, uid: str) -> VirDomain | None:
    """The guest's domain, or None."""
    try:
        return connection.lookupByUUID(domain_uuid(uid).bytes)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def observe(connection: VirConnect, uid: str) -> Observed:
    """One guest; ABSENT when not known."""
    domain = find(connection, uid)
    return (_observe_domain(domain, uid) if domain is not None else None) or Observed(absent(uid))


def observe_all(connection: VirConnect) -> list[Observed]:
    """Every guest that Leeward defined, in order of uid; other domains of the host are left out."""
    found = []
    for domain in connection.listAllDomains():
        uid = uid_of_domain_name(domain.name())
        if uid is None or domain.UUID() != domain_uuid(uid).bytes:
            continue
        observed = _observe_domain(domain, uid)
        if observed is not None:
            found.append(observed)
    return sorted(found, key=lambda observed: observed.status.uid)


def is_migrating(connection: VirConnect, uid: str) -> bool:
    """Whether a migration job runs. May wait for QEMU: libvirt takes the guest's job lock for it."""
    domain = find(connection, uid)
    return domain is not None and job_stats(domain) is not None


def post_copy(connection: VirConnect, uid: str) -> PostCopy:
    """How far a post-copy migration of the guest is."""
    domain = find(connection, uid)
    if domain is None:
        return PostCopy.NONE
    state, reason = domain.state()
    if (state, reason) in _SPLIT:
        return PostCopy.BROKEN
    return PostCopy.RUNNING if (state, reason) in _POST_COPY else PostCopy.NONE


def job_stats(domain: VirDomain) -> dict[str, int] | None:
    """Statistics of the migration job that runs, by libvirt's field names; None when there is none.

    The destination of a migration has none to tell, and gets an empty dictionary.
    """
    try:
        stats: dict[str, int] = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return None
        # "migration statistics are available only on the source host"
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return {}
        raise
    if stats.get("type", 0) not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
        return None
    return stats if stats.get(libvirt.VIR_DOMAIN_JOB_OPERATION) in _MIGRATION_OPERATIONS else None


def _observe_domain(domain: VirDomain, uid: str) -> Observed | None:
    """None when the domain vanished while it was being read."""
    try:
        state, reason = domain.state()
        status = GuestStatus(uid=uid, name="", state=_STATES.get(state, GuestState.RUNNING))
        if state == libvirt.VIR_DOMAIN_SHUTOFF:
            status = replace(status, stop_cause=_STOP_CAUSES.get(reason, StopCause.NONE))
        paused = state == libvirt.VIR_DOMAIN_PAUSED
        if (state, reason) in _MOVING:
            status = replace(status, migrating=True)
        status = _with_metadata(domain, status)
        return Observed(status, paused_by_io_error=paused and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _with_metadata(domain: VirDomain, status: GuestStatus) -> GuestStatus:
    try:
        element = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return status
        raise
    metadata = parse_metadata(element)
    # One that was restored from its memory is paused for the same reason as one that arrives.
    migrating = status.migrating and not (metadata.woken and status.state is GuestState.PAUSED)
    return replace(status, name=metadata.name, run_epoch=metadata.run_epoch, migrating=migrating)
