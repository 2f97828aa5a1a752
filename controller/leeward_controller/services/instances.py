"""Instances: made, read, listed, watched, and what can be changed of one without an operation."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

from leeward import keys, names
from leeward.clock import Clock
from leeward.errors import AlreadyExists, Conflict, NotFound
from leeward_controller.domain.instance import Instance, Readiness, RestartPriority
from leeward_controller.domain.operation import CreateArguments, OperationType
from leeward_controller.domain.transitions import Immediate, check_lock, check_state
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import INSTANCES, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.creating import InstanceMaker, NewInstance
from leeward_controller.services.creating_checks import check_readiness
from leeward_controller.services.filters import Fields, parse_filter
from leeward_controller.services.paging import Listing, PageRequest, list_page
from leeward_controller.services.shown import Presenter, ShownOperation
from leeward_controller.services.watches import Watches, WatchEvent

T = TypeVar("T")

ALL_PROJECTS = "projects/-"
_ATTEMPTS = 5

_FIELDS: Fields[Instance] = {
    "state": lambda instance: instance.state,
    "node": lambda instance: f"nodes/{instance.node}" if instance.node else "",
    "flavor": lambda instance: f"flavors/{instance.flavor}",
    "image": lambda instance: instance.image,
}


@dataclass(frozen=True, slots=True)
class Target:
    """Which instance a call is about: with `etag`, only that version of it; with `validate_only`, only look."""

    name: str
    etag: str = ""
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class InstanceChanges:
    """What to change of an instance; None leaves it as it is. A `readiness` of None can be meant, so a word says it."""

    labels: Mapping[str, str] | None = None
    restart_on_failure: bool | None = None
    restart_priority: RestartPriority | None = None
    changes_readiness: bool = False
    readiness: Readiness | None = None


class InstanceService:
    """The instances as records."""

    def __init__(
        self,
        *,
        records: Records,
        submitter: Submitter,
        presenter: Presenter,
        maker: InstanceMaker,
        watches: Watches,
        clock: Clock,
    ) -> None:
        self._records = records
        self._submitter = submitter
        self._presenter = presenter
        self._maker = maker
        self._watches = watches
        self._clock = clock

    async def create(self, new: NewInstance, requester: Requester) -> ShownOperation:
        """Launch an instance.

        Raises InvalidArgument, NotFound, AlreadyExists, NoNodeFits, NodeUnfit, ResourceExhausted (quota).
        """
        checked = self._maker.check(new, requester.request_id)
        if (earlier := await self._submitter.repeated(requester)) is not None:
            return await self._presenter.show(earlier)
        if new.validate_only and await self._records.get(INSTANCES, keys.instance(checked.name)) is not None:
            raise AlreadyExists.named(checked.name)
        made = await self._maker.make(new, request_id=requester.request_id, creator=requester.principal)
        instance, warnings = made.instance, made.warnings
        arguments = CreateArguments(node=checked.node)
        if new.validate_only:
            await self._submitter.check_creation(instance)
            principal = requester.principal
            return self._presenter.only_checked(instance, OperationType.CREATE, arguments, principal, warnings)
        begun = await self._submitter.create(instance, arguments, requester, warnings=warnings)
        return await self._presenter.show(begun)

    async def get(self, name: str) -> Stored[Instance]:
        """One instance, as it is now. Raises InvalidArgument, NotFound."""
        names.project_instance(name)
        return await self._read(name)

    async def list(self, parent: str, page: PageRequest) -> Listing[Instance]:
        """One page of a project's instances, by name. Raises InvalidArgument."""
        checks = Checks()
        prefix = checks.parsed(lambda: project_prefix(keys.INSTANCES, parent, "instances"), "")
        page.check(checks)
        keep: Callable[[Instance], bool] = checks.parsed(
            lambda: parse_filter(page.filter, _FIELDS, mapping=lambda instance: instance.labels), lambda _: True
        )
        checks.done()
        return await list_page(self._records, INSTANCES, page, prefix=prefix, keep=keep)

    async def watch(self, parent: str, revision: int) -> AsyncGenerator[WatchEvent[Instance], None]:
        """Changes of a project's instances; see `Watches.watch`."""
        prefix = project_prefix(keys.INSTANCES, parent, "instances")
        async with aclosing(self._watches.watch(INSTANCES, prefix=prefix, revision=revision)) as events:
            async for event in events:
                yield event

    async def update(self, target: Target, changes: InstanceChanges, requester: Requester) -> Stored[Instance]:
        """Change what is given. Raises InvalidArgument, NotFound, Locked, WrongState, Conflict (etag)."""
        checks = Checks()
        checks.parsed(lambda: names.project_instance(target.name, field="instance.name"), ("", ""))
        checks.labels(changes.labels or {}, "instance.labels")
        check_readiness(checks, changes.readiness)
        checks.request_id(requester.request_id)
        checks.done()

        def change(instance: Instance) -> Instance:
            check_lock(instance, Immediate.UPDATE, admin=requester.admin)
            check_state(instance, Immediate.UPDATE)
            if changes.labels is not None:
                instance = replace(instance, labels=dict(changes.labels))
            if changes.restart_on_failure is not None:
                instance = replace(instance, restart_on_failure=changes.restart_on_failure)
            if changes.restart_priority is not None:
                instance = replace(instance, restart_priority=changes.restart_priority)
            if changes.changes_readiness:
                instance = replace(instance, readiness=changes.readiness)
            return instance

        return await self.change(target, change)

    async def change(self, target: Target, change: Callable[[Instance], Instance]) -> Stored[Instance]:
        """Write what `change` makes of the instance as it is, when that is another; it may raise to refuse.

        Raises NotFound, Conflict (etag).
        """

        async def act(stored: Stored[Instance]) -> Stored[Instance]:
            new = change(stored.value)
            if new == stored.value or target.validate_only:
                return stored
            new = replace(new, update_time=self._clock.now())
            revision = await self._records.commit(Commit().replace(stored, new))
            return Stored(stored.key, new, revision, stored.create_revision)

        return await self.on_present(target, act)

    async def on_present(self, target: Target, act: Callable[[Stored[Instance]], Awaitable[T]]) -> T:
        """Act on the instance as it is; again when it changed in between, unless a version was asked for."""
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self._read(target.name)
            check_etag(stored, target.etag, name=target.name)
            try:
                return await act(stored)
            except Conflict as error:
                # An operation that runs is a conflict of its own kind: asking again changes nothing.
                if attempts <= 0 or error.specific_reason != Conflict.reason:
                    raise

    async def _read(self, name: str) -> Stored[Instance]:
        stored = await self._records.get(INSTANCES, keys.instance(name))
        if stored is None:
            raise NotFound.named(name)
        return stored


def project_prefix(root: str, parent: str, collection: str) -> str:
    """Where the keys of a project's `collection` begin; of all projects for `projects/-`. Raises InvalidArgument."""
    return root if parent == ALL_PROJECTS else f"{root}projects/{names.project(parent)}/{collection}/"
