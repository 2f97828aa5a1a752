"""Projects: their limits, set by operators, and what they use. One without a record has no limits."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace

from leeward import keys, names
from leeward.clock import Clock, Ids
from leeward.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, Violation
from leeward_controller.domain.project import Project, Quota, Usage
from leeward_controller.operations.admission import read_usage
from leeward_controller.records import PROJECTS, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.instances import Target
from leeward_controller.services.paging import Listing, PageRequest, list_page

CHANGEABLE = ("quota", "labels")
_MOST = 2**53
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class ProjectSpec:
    """What an operator says of a project."""

    quota: Quota = field(default_factory=Quota)
    labels: Mapping[str, str] = field(default_factory=dict)

    def check(self, checks: Checks) -> None:
        """Note what is wrong with it."""
        for each in fields(Quota):
            limit = getattr(self.quota, each.name)
            if limit is not None:
                checks.between(limit, 0, _MOST, f"project.quota.{each.name}")
        checks.labels(self.labels, "project.labels")


@dataclass(frozen=True, slots=True)
class NewProject:
    """A project to make, as it was asked for."""

    project_id: str
    spec: ProjectSpec
    request_id: str = ""
    validate_only: bool = False

    def check(self) -> None:
        """Raises InvalidArgument with every wrong field."""
        checks = Checks()
        checks.parsed(lambda: names.check_id(self.project_id, field="project_id"), "")
        self.spec.check(checks)
        checks.request_id(self.request_id)
        checks.done()


@dataclass(frozen=True, slots=True)
class ShownProject:
    """A project with what it uses."""

    stored: Stored[Project]
    usage: Usage


class ProjectService:
    """The projects."""

    def __init__(self, *, records: Records, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._clock = clock
        self._ids = ids

    async def create(self, new: NewProject) -> ShownProject:
        """Give a project limits, whether or not it has anything yet. The same request again answers what it made.

        Raises InvalidArgument, AlreadyExists.
        """
        new.check()
        project = Project(
            project=new.project_id,
            uid=self._ids.new(),
            quota=new.spec.quota,
            create_time=self._clock.now(),
            labels=dict(new.spec.labels),
            request_id=new.request_id,
        )
        key = keys.project(new.project_id)
        if new.validate_only:
            return await self._shown(await self._there_already(key, project) or Stored(key, project, 0, 0))
        try:
            revision = await self._records.commit(Commit().create(key, project))
        except Conflict:
            there = await self._there_already(key, project)
            if there is None:
                raise
            return await self._shown(there)
        return await self._shown(Stored(key, project, revision, revision))

    async def get(self, name: str) -> ShownProject:
        """One project. Raises InvalidArgument, NotFound (it has no record; it may have instances all the same)."""
        return await self._shown(await self._read(name))

    async def list(self, page: PageRequest) -> tuple[list[ShownProject], Listing[Project]]:
        """One page of the projects with limits, by name. Raises InvalidArgument."""
        checks = Checks()
        page.check(checks)
        checks.done()
        listing = await list_page(self._records, PROJECTS, page)
        return [await self._shown(stored) for stored in listing.items], listing

    async def update(
        self, target: Target, spec: ProjectSpec, changed: Collection[str], *, request_id: str = ""
    ) -> ShownProject:
        """Change the fields of these names. A limit below what is used takes nothing away; it lets nothing more in.

        Raises InvalidArgument, NotFound, Conflict (etag).
        """
        checks = Checks()
        checks.parsed(lambda: names.project(target.name, field="project.name"), "")
        spec.check(checks)
        checks.request_id(request_id)
        checks.done()
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self._read(target.name)
            check_etag(stored, target.etag, name=target.name)
            new = stored.value
            if "quota" in changed:
                new = replace(new, quota=spec.quota)
            if "labels" in changed:
                new = replace(new, labels=dict(spec.labels))
            if new == stored.value or target.validate_only:
                return await self._shown(stored)
            try:
                revision = await self._records.commit(Commit().replace(stored, new))
                return await self._shown(Stored(stored.key, new, revision, stored.create_revision))
            except Conflict:
                if attempts <= 0:
                    raise

    async def delete(self, target: Target) -> None:
        """Remove a project that has neither instances nor images, and its limits with it.

        Raises InvalidArgument, NotFound, Conflict (etag), FailedPrecondition (it is in use).
        """
        stored = await self._read(target.name)
        check_etag(stored, target.etag, name=target.name)
        usage = await read_usage(self._records, stored.value.project)
        if usage != Usage():
            why = f"it has {usage.instances} instances and {usage.images} images"
            raise FailedPrecondition(
                f"{target.name} is in use: {why}",
                reason="PROJECT_IN_USE",
                violations=[Violation("IN_USE", target.name, why)],
                resource=target.name,
            )
        if not target.validate_only:
            await self._records.commit(Commit().remove(stored).discard(keys.admission(stored.value.project)))

    async def _there_already(self, key: str, wanted: Project) -> Stored[Project] | None:
        """The project at `key` when this very request made it. Raises AlreadyExists when another did."""
        there = await self._records.get(PROJECTS, key)
        if there is None:
            return None
        same = replace(wanted, uid=there.value.uid, create_time=there.value.create_time)
        if not wanted.request_id or there.value != same:
            raise AlreadyExists.named(wanted.name)
        return there

    async def _read(self, name: str) -> Stored[Project]:
        stored = await self._records.get(PROJECTS, keys.project(names.project(name, field="name")))
        if stored is None:
            raise NotFound.named(name)
        return stored

    async def _shown(self, stored: Stored[Project]) -> ShownProject:
        return ShownProject(stored, await read_usage(self._records, stored.value.project))
