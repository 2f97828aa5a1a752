"""Backup policies: made, changed and removed by users; the leader's housekeeping follows them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from leeward import keys, names
from leeward.clock import Clock, Ids
from leeward.errors import AlreadyExists, Conflict, NotFound
from leeward_controller.domain.backup import BackupPolicy, BackupRun, check_schedule, check_time_zone, next_due
from leeward_controller.records import BACKUP_POLICIES, BACKUP_RUNS, INSTANCES, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.instances import Target, project_prefix
from leeward_controller.services.paging import Listing, PageRequest, list_page

MAX_KEPT = 365
MAX_INSTANCES = 1000
CHANGEABLE = ("schedule", "time_zone", "keep_count", "instances", "paused")
_WHEN = frozenset({"schedule", "time_zone", "paused"})
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What a client says of a backup policy."""

    schedule: str = ""
    time_zone: str = ""
    keep_count: int = 0
    instances: tuple[str, ...] = ()
    paused: bool = False

    def check(self, checks: Checks, fields: Collection[str], *, project: str) -> None:
        """Note what is wrong with the fields of these names."""
        if "schedule" in fields:
            checks.parsed(lambda: check_schedule(self.schedule, field="backup_policy.schedule"), "")
        if "time_zone" in fields:
            checks.parsed(lambda: check_time_zone(self.time_zone, field="backup_policy.time_zone"), "")
        if "keep_count" in fields:
            checks.between(self.keep_count, 1, MAX_KEPT, "backup_policy.keep_count")
        if "instances" in fields:
            self._check_instances(checks, project)

    def _check_instances(self, checks: Checks, project: str) -> None:
        path = "backup_policy.instances"
        least = 1 <= len(self.instances) <= MAX_INSTANCES
        checks.that(least, path, f"has {len(self.instances)} entries, 1 to {MAX_INSTANCES} are allowed")
        checks.that(len(set(self.instances)) == len(self.instances), path, "names an instance twice")
        for index, name in enumerate(self.instances):
            at = f"{path}[{index}]"
            found = _parsed_instance(checks, name, at)
            if found and project:
                checks.that(found == project, at, f"{name} is not in projects/{project}, where the policy is")


@dataclass(frozen=True, slots=True)
class NewBackupPolicy:
    """A backup policy to make, as it was asked for."""

    parent: str
    policy_id: str
    spec: PolicySpec
    request_id: str = ""
    validate_only: bool = False

    def check(self) -> str:
        """The policy's name. Raises InvalidArgument with every wrong field."""
        checks = Checks()
        project = checks.parsed(lambda: names.project(self.parent), "")
        policy_id = checks.parsed(lambda: names.check_id(self.policy_id, field="backup_policy_id"), "")
        self.spec.check(checks, CHANGEABLE, project=project)
        checks.request_id(self.request_id)
        checks.done()
        return names.backup_policy_name(project, policy_id)


@dataclass(frozen=True, slots=True)
class ShownPolicy:
    """A policy with its last run, if it has had one, and when it runs next, unless it rests."""

    stored: Stored[BackupPolicy]
    run: BackupRun | None = None
    next_run_time: datetime | None = None


class BackupPolicyService:
    """The backup policies."""

    def __init__(self, *, records: Records, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._clock = clock
        self._ids = ids

    async def create(self, new: NewBackupPolicy) -> ShownPolicy:
        """Make a policy. The same request again answers what it made. Raises InvalidArgument, AlreadyExists."""
        name, spec, now = new.check(), new.spec, self._clock.now()
        policy = BackupPolicy(
            name=name,
            uid=self._ids.new(),
            schedule=spec.schedule,
            time_zone=spec.time_zone,
            keep_count=spec.keep_count,
            instances=spec.instances,
            create_time=now,
            effective_time=now,
            paused=spec.paused,
            request_id=new.request_id,
        )
        key = keys.backup_policy(name)
        if (there := await self._there_already(key, policy)) is not None:
            return await self._shown(there)
        await self._check_present(spec.instances)
        if new.validate_only:
            return await self._shown(Stored(key, policy, 0, 0))
        try:
            revision = await self._records.commit(Commit().create(key, policy))
        except Conflict:
            there = await self._there_already(key, policy)
            if there is None:
                raise
            return await self._shown(there)
        return await self._shown(Stored(key, policy, revision, revision))

    async def get(self, name: str) -> ShownPolicy:
        """One policy. Raises InvalidArgument, NotFound."""
        names.project_backup_policy(name)
        return await self._shown(await self._read(name))

    async def list(self, parent: str, page: PageRequest) -> tuple[list[ShownPolicy], Listing[BackupPolicy]]:
        """One page of a project's policies, by name. Raises InvalidArgument."""
        checks = Checks()
        prefix = checks.parsed(lambda: project_prefix(keys.BACKUP_POLICIES, parent, "backupPolicies"), "")
        page.check(checks)
        checks.done()
        listing = await list_page(self._records, BACKUP_POLICIES, page, prefix=prefix)
        return [await self._shown(stored) for stored in listing.items], listing

    async def update(
        self, target: Target, spec: PolicySpec, fields: Collection[str], *, request_id: str = ""
    ) -> ShownPolicy:
        """Change the fields of these names. What was due by another schedule, or while it rested, is not made up.

        Raises InvalidArgument, NotFound, Conflict (etag).
        """
        checks = Checks()
        project, _ = checks.parsed(
            lambda: names.project_backup_policy(target.name, field="backup_policy.name"), ("", "")
        )
        spec.check(checks, fields, project=project)
        checks.request_id(request_id)
        checks.done()
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self._read(target.name)
            check_etag(stored, target.etag, name=target.name)
            new = self._changed(stored.value, spec, fields)
            await self._check_present([name for name in new.instances if name not in stored.value.instances])
            if new == stored.value or target.validate_only:
                return await self._shown(stored)
            try:
                revision = await self._records.commit(Commit().replace(stored, new))
                return await self._shown(Stored(stored.key, new, revision, stored.create_revision))
            except Conflict:
                if attempts <= 0:
                    raise

    async def delete(self, target: Target) -> None:
        """Remove a policy; the backups that it made stay. Raises InvalidArgument, NotFound, Conflict (etag)."""
        names.project_backup_policy(target.name)
        stored = await self._read(target.name)
        check_etag(stored, target.etag, name=target.name)
        if not target.validate_only:
            await self._records.commit(Commit().remove(stored).discard(keys.backup_run(target.name)))

    def _changed(self, policy: BackupPolicy, spec: PolicySpec, fields: Collection[str]) -> BackupPolicy:
        changes = {name: getattr(spec, name) for name in fields if getattr(spec, name) != getattr(policy, name)}
        if _WHEN & set(changes):
            changes["effective_time"] = self._clock.now()
        return replace(policy, **changes)

    async def _check_present(self, instances: Sequence[str]) -> None:
        checks = Checks()
        for name in instances:
            there = await self._records.get(INSTANCES, keys.instance(name)) is not None
            checks.that(there, "backup_policy.instances", f"{name} does not exist")
        checks.done()

    async def _there_already(self, key: str, wanted: BackupPolicy) -> Stored[BackupPolicy] | None:
        """The policy at `key` when this very request made it. Raises AlreadyExists when another did."""
        there = await self._records.get(BACKUP_POLICIES, key)
        if there is None:
            return None
        value = there.value
        same = replace(wanted, uid=value.uid, create_time=value.create_time, effective_time=value.effective_time)
        if not wanted.request_id or value != same:
            raise AlreadyExists.named(wanted.name)
        return there

    async def _read(self, name: str) -> Stored[BackupPolicy]:
        stored = await self._records.get(BACKUP_POLICIES, keys.backup_policy(name))
        if stored is None:
            raise NotFound.named(name)
        return stored

    async def _shown(self, stored: Stored[BackupPolicy]) -> ShownPolicy:
        policy = stored.value
        found = await self._records.get(BACKUP_RUNS, keys.backup_run(policy.name))
        run = found.value if found is not None and found.value.policy_uid == policy.uid else None
        if policy.paused:
            return ShownPolicy(stored, run)
        return ShownPolicy(stored, run, next_due(policy, after=self._clock.now()))


def _parsed_instance(checks: Checks, name: str, at: str) -> str:
    """The project in an instance's name, empty when it is none."""
    return checks.parsed(lambda: names.project_instance(name, field=at)[0], "")
