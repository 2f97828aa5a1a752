"""Backup policies: when backups are taken, how many are kept, and what is known of the last run."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from leeward.errors import InvalidArgument
from leeward_controller.domain.catalog import Image

BACKUP_PRINCIPAL = "leeward:backup"
POLICY_PROPERTY = "backup_policy"
INSTANCE_PROPERTY = "backup_instance"
MAX_SCHEDULE_LENGTH = 128

_MAX_ID_LENGTH = 63
_ID_DIGEST_LENGTH = 8
_CRON_FIELDS = 5
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*\Z")
# Files of the time zone database that are no zones, or a different one on each host.
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})
_LOOKS_BACK = (timedelta(days=2), timedelta(days=32), timedelta(days=367))


@dataclass(frozen=True, slots=True)
class BackupPolicy:
    """What was asked for. Due times up to `effective_time` are none of this policy's: it was made or changed then."""

    name: str
    uid: str
    schedule: str
    time_zone: str
    keep_count: int
    instances: tuple[str, ...]
    create_time: datetime
    effective_time: datetime
    paused: bool = False
    request_id: str = ""

    @property
    def policy_id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class PendingBackup:
    """A backup that is still to be made: how often it was tried in vain, and when it is tried again."""

    instance: str
    instance_uid: str
    attempt: int = 0
    not_before: datetime | None = None
    reason: str = ""  # Why the last attempt failed.


@dataclass(frozen=True, slots=True)
class FailedBackup:
    """A backup that was given up, and why."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class BackupRun:
    """The last due time of a policy that was taken up, and what is left to do of it."""

    policy_uid: str
    due_time: datetime
    start_time: datetime
    pending: tuple[PendingBackup, ...] = ()
    failed: tuple[FailedBackup, ...] = ()


def check_schedule(schedule: str, *, field: str = "schedule") -> str:
    """`schedule` when it has the five fields of cron and a time to come. Raises InvalidArgument."""
    if len(schedule) > MAX_SCHEDULE_LENGTH:
        raise InvalidArgument.field(field, f"has {len(schedule)} characters, at most {MAX_SCHEDULE_LENGTH} are allowed")
    if len(schedule.split()) != _CRON_FIELDS:
        told = "minute, hour, day of month, month, day of week, as '0 2 * * *'"
        raise InvalidArgument.field(field, f"{schedule!r} has not the five fields of cron: {told}")
    try:
        first = next(CronSim(schedule, datetime(2000, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        raise InvalidArgument.field(field, f"{schedule!r}: {error}") from error
    if first is None:
        raise InvalidArgument.field(field, f"{schedule!r} never comes")
    return schedule


def check_time_zone(name: str, *, field: str = "time_zone") -> str:
    """`name` when it is an IANA time zone; empty stands for UTC. Raises InvalidArgument."""
    try:
        if name and (name in _NO_ZONES or not _ZONE.match(name)):
            raise ValueError(name)
        _zone(name)
    except (LookupError, ValueError, OSError) as error:
        raise InvalidArgument.field(field, f"{name!r} is not the name of a time zone, as 'Europe/Berlin'") from error
    return name


def next_due(policy: BackupPolicy, *, after: datetime) -> datetime | None:
    """The first due time after `after`, in UTC; None when there is none in the next decades.

    A time that summer time leaves out comes at the moment of the change, and one that it doubles comes once, as
    Debian's cron has it.
    """
    return next(_due_times(policy, after), None)


def last_due(policy: BackupPolicy, *, after: datetime, now: datetime) -> datetime | None:
    """The latest due time after `after` and not after `now`; however many were missed, it is the one to make up."""
    for back in (*_LOOKS_BACK, None):
        start = after if back is None else max(after, now - back)
        found = None
        for due in _due_times(policy, start):
            if due > now:
                break
            found = due
        if found is not None or start == after:
            return found
    return None


def backup_image_id(policy: BackupPolicy, instance: str, due_time: datetime, *, marked: bool = False) -> str:
    """The id of the image: `{instance}-{policy}-{yyyymmddthhmmss}`, in UTC.

    It is the same whoever asks. Names that are too long together are cut and told apart by a digest, as are those
    that are `marked`, because the plain id is another image's.
    """
    stamp = f"{due_time.astimezone(UTC):%Y%m%dt%H%M%S}"
    who = f"{instance.rpartition('/')[2]}-{policy.policy_id}"
    room = _MAX_ID_LENGTH - len(stamp) - 1
    if marked or len(who) > room:
        digest = hashlib.sha256(f"{policy.name}\0{instance}".encode()).hexdigest()[:_ID_DIGEST_LENGTH]
        who = f"{who[: room - _ID_DIGEST_LENGTH - 1].rstrip('-')}-{digest}"
    return f"{who}-{stamp}"


def is_backup(image: Image, *, policy: str, instance: str) -> bool:
    """Whether a policy made this image of an instance. One whose properties were taken away is nobody's backup."""
    properties = image.properties
    return (
        image.created_by == BACKUP_PRINCIPAL
        and properties.get(POLICY_PROPERTY) == policy
        and properties.get(INSTANCE_PROPERTY) == instance
    )


def _due_times(policy: BackupPolicy, after: datetime) -> Iterator[datetime]:
    for due in CronSim(policy.schedule, after.astimezone(_zone(policy.time_zone))):
        at = due.astimezone(UTC)
        # In the hour that the end of summer time doubles, the times of its first half are told again.
        if at > after:
            yield at


def _zone(name: str) -> tzinfo:
    return UTC if name in ("", "UTC") else ZoneInfo(name)
