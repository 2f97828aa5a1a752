"""Instances: everything that can be done to one."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

from leeward import keys, names
from leeward.agent.types import RebootMode
from leeward.clock import Clock
from leeward.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, Violation
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import (
    Arguments,
    CreateArguments,
    DeleteArguments,
    EvacuateArguments,
    LiveMigrateArguments,
    Operation,
    OperationPhase,
    OperationType,
    RebootArguments,
    StartArguments,
    StopArguments,
)
from leeward_controller.operations.definitions import DEFINITIONS
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import FENCES, INSTANCES, NODES, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.creating import InstanceMaker, NewInstance
from leeward_controller.services.filters import Fields, parse_filter
from leeward_controller.services.history import without_node
from leeward_controller.services.paging import Listing, PageRequest, list_page
from leeward_controller.services.shown import Presenter, ShownOperation
from leeward_controller.services.watches import Watches, WatchEvent

T = TypeVar("T")

ALL_PROJECTS = "projects/-"
LONGEST_GRACE_S = 3600.0
LONGEST_MIGRATION_S = 86_400.0
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


class InstanceService:
    """The instances."""

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
        """Launch an instance. Raises InvalidArgument, NotFound, AlreadyExists, NoNodeFits, NodeUnfit."""
        checked = self._maker.check(new, requester.request_id)
        if (earlier := await self._submitter.repeated(requester)) is not None:
            return await self._presenter.show(earlier)
        if new.validate_only and await self._records.get(INSTANCES, keys.instance(checked.name)) is not None:
            raise AlreadyExists.named(checked.name)
        instance = await self._maker.make(new, request_id=requester.request_id, creator=requester.principal)
        arguments = CreateArguments(node=checked.node)
        if new.validate_only:
            return self._only_checked(instance, OperationType.CREATE, arguments, requester)
        return await self._presenter.show(await self._submitter.create(instance, arguments, requester))

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

    async def update(
        self,
        target: Target,
        *,
        labels: Mapping[str, str] | None,
        restart_on_failure: bool | None,
        request_id: str = "",
    ) -> Stored[Instance]:
        """Change what is given. Raises InvalidArgument, NotFound, Conflict (etag)."""
        checks = Checks()
        checks.parsed(lambda: names.project_instance(target.name, field="instance.name"), ("", ""))
        checks.labels(labels or {}, "instance.labels")
        checks.request_id(request_id)
        checks.done()

        async def change(stored: Stored[Instance]) -> Stored[Instance]:
            new = stored.value
            if labels is not None:
                new = replace(new, labels=dict(labels))
            if restart_on_failure is not None:
                new = replace(new, restart_on_failure=restart_on_failure)
            if new == stored.value or target.validate_only:
                return stored
            new = replace(new, update_time=self._clock.now())
            revision = await self._records.commit(Commit().replace(stored, new))
            return Stored(stored.key, new, revision, stored.create_revision)

        return await self._on_present(target, change)

    async def delete(self, target: Target, requester: Requester) -> ShownOperation:
        """Delete an instance and all it holds, interrupting what runs on it. Raises as `start` does."""
        return await self._begin(target, OperationType.DELETE, DeleteArguments(), requester, Checks())

    async def start(self, target: Target, requester: Requester) -> ShownOperation:
        """Boot a stopped instance.

        Raises InvalidArgument, NotFound, WrongState, OperationRunning, Conflict (etag).
        """
        return await self._begin(target, OperationType.START, StartArguments(), requester, Checks())

    async def stop(self, target: Target, requester: Requester, *, grace_period_s: float | None) -> ShownOperation:
        """Shut an instance down. Raises as `start` does."""
        checks = Checks()
        grace_s = StopArguments().grace_period_s if grace_period_s is None else grace_period_s
        checks.between(grace_s, 0, LONGEST_GRACE_S, "grace_period", " s")
        return await self._begin(target, OperationType.STOP, StopArguments(grace_s), requester, checks)

    async def reboot(
        self, target: Target, requester: Requester, *, mode: RebootMode, timeout_s: float | None
    ) -> ShownOperation:
        """Restart an instance where it is. Raises as `start` does."""
        checks = Checks()
        bound_s = RebootArguments().timeout_s if timeout_s is None else timeout_s
        checks.between(bound_s, 0, LONGEST_GRACE_S, "timeout", " s")
        arguments = RebootArguments(mode, bound_s)
        return await self._begin(target, OperationType.REBOOT, arguments, requester, checks)

    async def live_migrate(
        self,
        target: Target,
        requester: Requester,
        *,
        node: str,
        bandwidth_mib_s: int,
        max_downtime_s: float | None,
        timeout_s: float | None,
    ) -> ShownOperation:
        """Move an instance while it runs. Raises as `start` does."""
        checks, usual = Checks(), LiveMigrateArguments()
        node_id = checks.parsed(lambda: names.node(node, field="node"), "") if node else ""
        checks.between(bandwidth_mib_s, 0, 1_000_000, "max_bandwidth_mib_per_second", " MiB/s")
        downtime_s = usual.max_downtime_ms / 1000 if max_downtime_s is None else max_downtime_s
        checks.between(downtime_s, 0.001, 60, "max_downtime", " s")
        bound_s = usual.timeout_s if timeout_s is None else timeout_s
        checks.between(bound_s, 1, LONGEST_MIGRATION_S, "timeout", " s")
        arguments = LiveMigrateArguments(node_id, bandwidth_mib_s, round(downtime_s * 1000), bound_s)
        return await self._begin(target, OperationType.LIVE_MIGRATE, arguments, requester, checks)

    async def evacuate(self, target: Target, requester: Requester, *, node: str, allow_rebuild: bool) -> ShownOperation:
        """Restart an instance elsewhere. Raises as `start` does, and FailedPrecondition without a fence proof."""
        checks = Checks()
        node_id = checks.parsed(lambda: names.node(node, field="node"), "") if node else ""
        checks.that(not allow_rebuild, "allow_rebuild", "is not supported by this version; leave it unset")
        return await self._begin(target, OperationType.EVACUATE, EvacuateArguments(node_id), requester, checks)

    async def _begin(
        self, target: Target, wanted: OperationType, arguments: Arguments, requester: Requester, checks: Checks
    ) -> ShownOperation:
        checks.parsed(lambda: names.project_instance(target.name), ("", ""))
        checks.request_id(requester.request_id)
        checks.done()
        if (earlier := await self._submitter.repeated(requester)) is not None:
            return await self._presenter.show(earlier)

        async def begin(stored: Stored[Instance]) -> ShownOperation:
            chosen = arguments
            if isinstance(arguments, EvacuateArguments):
                chosen = await self._with_proof(stored.value, arguments)
            if target.validate_only:
                await self._submitter.check(stored.value, wanted, chosen)
                return self._only_checked(stored.value, wanted, chosen, requester)
            return await self._presenter.show(await self._submitter.submit(stored, wanted, chosen, requester))

        return await self._on_present(target, begin)

    async def _on_present(self, target: Target, act: Callable[[Stored[Instance]], Awaitable[T]]) -> T:
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

    async def _with_proof(self, instance: Instance, arguments: EvacuateArguments) -> EvacuateArguments:
        """The boot of the instance's node that is proved to be over. Raises FailedPrecondition."""
        if not instance.node:
            raise without_node(instance)
        node = await self._records.get(NODES, keys.node(instance.node))
        boot_id = node.value.report.boot_id if node else ""
        if node is None or await self._records.get(FENCES, keys.fence(instance.node, boot_id)) is None:
            name = f"nodes/{instance.node}"
            raise FailedPrecondition(
                f"{instance.name} is on {name}, of which there is no fence proof: it may still run there",
                reason="NOT_FENCED",
                violations=[Violation("FENCE_PROOF", name, "has no fence proof; fence it, or attest that it is off")],
                resource=name,
            )
        return replace(arguments, fenced_node=instance.node, fenced_boot_id=boot_id)

    async def _read(self, name: str) -> Stored[Instance]:
        stored = await self._records.get(INSTANCES, keys.instance(name))
        if stored is None:
            raise NotFound.named(name)
        return stored

    def _only_checked(
        self, instance: Instance, wanted: OperationType, arguments: Arguments, requester: Requester
    ) -> ShownOperation:
        now = self._clock.now()
        operation = Operation(
            id="",
            type=wanted,
            instance=instance.name,
            instance_uid=instance.uid,
            arguments=arguments,
            phase=OperationPhase.RUNNING,
            step=DEFINITIONS[wanted].steps[0].name,
            requested_by=requester.principal,
            create_time=now,
            update_time=now,
        )
        return ShownOperation(operation)


def project_prefix(root: str, parent: str, collection: str) -> str:
    """Where the keys of a project's `collection` begin; of all projects for `projects/-`. Raises InvalidArgument."""
    return root if parent == ALL_PROJECTS else f"{root}projects/{names.project(parent)}/{collection}/"
