"""Groups: made and removed by users; who is in one is said when an instance is launched."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from leeward import keys, names
from leeward.clock import Clock, Ids
from leeward.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, Violation
from leeward_controller.domain.group import Group, GroupPolicy
from leeward_controller.records import GROUPS, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.instances import Target, project_prefix
from leeward_controller.services.paging import Listing, PageRequest, list_page

_ATTEMPTS = 20
_TOLD_MEMBERS = 8


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A group to make, as it was asked for; without a policy that is known, None."""

    parent: str
    group_id: str
    policy: GroupPolicy | None
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    validate_only: bool = False

    def check(self) -> tuple[str, GroupPolicy]:
        """The group's name and policy. Raises InvalidArgument with every wrong field."""
        checks = Checks()
        project = checks.parsed(lambda: names.project(self.parent), "")
        group_id = checks.parsed(lambda: names.check_id(self.group_id, field="group_id"), "")
        known = ", ".join(GroupPolicy)
        checks.that(self.policy is not None, "group.policy", f"is not told, or not known; allowed: {known}")
        checks.labels(self.labels, "group.labels")
        checks.request_id(self.request_id)
        checks.done()
        assert self.policy is not None
        return names.group_name(project, group_id), self.policy


class GroupService:
    """The groups."""

    def __init__(self, *, records: Records, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._clock = clock
        self._ids = ids

    async def create(self, new: NewGroup) -> Stored[Group]:
        """Make a group. The same request again answers what it made. Raises InvalidArgument, AlreadyExists."""
        name, policy = new.check()
        group = Group(
            name=name,
            uid=self._ids.new(),
            policy=policy,
            create_time=self._clock.now(),
            labels=dict(new.labels),
            request_id=new.request_id,
        )
        key = keys.group(name)
        if new.validate_only:
            return await self._there_already(key, group) or Stored(key, group, 0, 0)
        try:
            revision = await self._records.commit(Commit().create(key, group))
        except Conflict:
            there = await self._there_already(key, group)
            if there is None:
                raise
            return there
        return Stored(key, group, revision, revision)

    async def get(self, name: str) -> Stored[Group]:
        """One group. Raises InvalidArgument, NotFound."""
        names.project_group(name)
        stored = await self._records.get(GROUPS, keys.group(name))
        if stored is None:
            raise NotFound.named(name)
        return stored

    async def list(self, parent: str, page: PageRequest) -> Listing[Group]:
        """One page of a project's groups, by name. Raises InvalidArgument."""
        checks = Checks()
        prefix = checks.parsed(lambda: project_prefix(keys.GROUPS, parent, "groups"), "")
        page.check(checks)
        checks.done()
        return await list_page(self._records, GROUPS, page, prefix=prefix)

    async def update(self, target: Target, *, labels: Mapping[str, str] | None, request_id: str = "") -> Stored[Group]:
        """Change what is given. Raises InvalidArgument, NotFound, Conflict (etag)."""
        checks = Checks()
        checks.parsed(lambda: names.project_group(target.name, field="group.name"), ("", ""))
        checks.labels(labels or {}, "group.labels")
        checks.request_id(request_id)
        checks.done()
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self.get(target.name)
            check_etag(stored, target.etag, name=target.name)
            new = stored.value if labels is None else replace(stored.value, labels=dict(labels))
            if new == stored.value or target.validate_only:
                return stored
            try:
                revision = await self._records.commit(Commit().replace(stored, new))
                return Stored(stored.key, new, revision, stored.create_revision)
            except Conflict:
                if attempts <= 0:
                    raise

    async def delete(self, target: Target) -> None:
        """Remove a group that has no members.

        Raises InvalidArgument, NotFound, Conflict (etag), FailedPrecondition (it is in use).
        """
        stored = await self.get(target.name)
        check_etag(stored, target.etag, name=target.name)
        members = [member.instance for member in stored.value.members]
        if members:
            told = ", ".join(members[:_TOLD_MEMBERS])
            raise FailedPrecondition(
                f"{target.name} has {len(members)} members: {told}",
                reason="GROUP_IN_USE",
                violations=[Violation("IN_USE", each, f"is in {target.name}") for each in members[:_TOLD_MEMBERS]],
                metadata={"instances": str(len(members))},
                resource=target.name,
            )
        if not target.validate_only:
            await self._records.commit(Commit().remove(stored))

    async def _there_already(self, key: str, wanted: Group) -> Stored[Group] | None:
        """The group at `key` when this very request made it. Raises AlreadyExists when another did."""
        there = await self._records.get(GROUPS, key)
        if there is None:
            return None
        value = there.value
        same = (value.policy, value.request_id) == (wanted.policy, wanted.request_id)
        if not wanted.request_id or not same:
            raise AlreadyExists.named(wanted.name)
        return there
