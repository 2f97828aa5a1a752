"""What is let into a project: limits are checked, and a group is joined, in the transaction that makes the thing.

What a project uses is counted from the records themselves, so there is no counter that could be wrong. Two checks must
not overlap, or both would find room for the last one: each writes the project's `Admission`, and requires it to be as
it was read before counting. Whatever takes less, or takes nothing new, needs none of this; neither do projects without
limits. A replica makes those of one project take turns, so that they do not collide with each other.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from leeward import keys, names
from leeward.errors import NotFound, ResourceExhausted, Violation
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, Resources
from leeward_controller.domain.operation import Operation, ResizeArguments
from leeward_controller.domain.project import (
    Admission,
    Excess,
    Project,
    Usage,
    excess,
    growth,
    is_limited,
    usage_of_image,
    usage_of_images,
    usage_of_instance,
)
from leeward_controller.records import (
    ADMISSIONS,
    GROUPS,
    IMAGES,
    INSTANCES,
    OPERATIONS,
    PROJECTS,
    Commit,
    Records,
    Stored,
)
from leeward_controller.view import ClusterView

_VIEW_LAG_S = 1.0


class Gatekeeper:
    """Adds to a commit what makes it right to let something in."""

    def __init__(self, *, records: Records, view: ClusterView) -> None:
        self._records = records
        self._view = view
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def turn(self, instance: Instance) -> AsyncIterator[None]:
        """Until it is committed, keep out of each other's way within this replica."""
        async with AsyncExitStack() as stack:
            for key in sorted({instance.project, instance.group} - {""}):
                await stack.enter_async_context(self._locks.setdefault(key, asyncio.Lock()))
            yield

    async def admit_instance(self, commit: Commit, instance: Instance) -> None:
        """Let in a new instance: within its project's limits, and as a member of its group.

        Raises ResourceExhausted (reason QUOTA_EXCEEDED, a violation a limit), NotFound (group).
        """
        await self._admit(commit, instance.project, usage_of_instance(instance), instance.name)
        if instance.group:
            group = await self._records.get(GROUPS, keys.group(instance.group))
            if group is None:
                raise NotFound.named(instance.group)
            commit.replace(group, group.value.with_member(instance.uid, instance.name))

    async def admit_resize(self, commit: Commit, instance: Instance, resources: Resources) -> None:
        """Let an instance grow. Raises ResourceExhausted."""
        more = growth(usage_of_instance(instance), usage_of_instance(instance, becoming=resources))
        await self._admit(commit, instance.project, more, instance.name)

    async def admit_image(self, commit: Commit, name: str, size_bytes: int) -> None:
        """Let in a new image. Raises ResourceExhausted."""
        await self._admit(commit, names.project_image(name)[0], usage_of_image(size_bytes), name)

    async def _admit(self, commit: Commit, project_id: str, asked: Usage, what: str) -> None:
        key = keys.project(project_id)
        project = await self._records.get(PROJECTS, key)
        if project is None:
            commit.absent(key)
            return
        commit.unchanged(project)
        if not is_limited(project.value.quota, asked):
            return
        key = keys.admission(project_id)
        gate = await self._records.get(ADMISSIONS, key) or Stored(key, Admission(project_id, ""), 0, 0)
        over = await self._excess_seen(project.value, asked, gate.revision)
        if over:
            # What is deleted may still be in the view.
            over = excess(project.value.quota, await read_usage(self._records, project_id), asked)
        if over:
            raise _quota_exceeded(project.value, over)
        commit.replace(gate, Admission(project_id, what))

    async def _excess_seen(self, project: Project, asked: Usage, revision: int) -> tuple[Excess, ...]:
        """The limits that would be exceeded, by what this replica sees once it has seen all that was let in before."""
        view, project_id = self._view, project.project
        caught_up = await view.wait_for(lambda: view.synced and view.revision >= revision, timeout_s=_VIEW_LAG_S)
        if not caught_up:
            return excess(project.quota, await read_usage(self._records, project_id), asked)
        instances_prefix, images_prefix = _prefixes(project_id)
        used = usage_of_images(s.value for key, s in view.images.items() if key.startswith(images_prefix))
        for key, stored in view.instances.items():
            if key.startswith(instances_prefix):
                operation = view.operations.get(_operation_key(stored.value))
                used += usage_of_instance(stored.value, becoming=_becoming(operation))
        return excess(project.quota, used, asked)


async def read_usage(records: Records, project_id: str) -> Usage:
    """What a project uses, as it is recorded now. Raises StoreUnavailable."""
    instances_prefix, images_prefix = _prefixes(project_id)
    images: Iterable[Stored[Image]] = (await records.list(IMAGES, prefix=images_prefix)).items
    used = usage_of_images(stored.value for stored in images)
    for stored in (await records.list(INSTANCES, prefix=instances_prefix)).items:
        operation = None
        if stored.value.current_operation:
            operation = await records.get(OPERATIONS, _operation_key(stored.value))
        used += usage_of_instance(stored.value, becoming=_becoming(operation))
    return used


def _prefixes(project_id: str) -> tuple[str, str]:
    return keys.instance(f"projects/{project_id}/instances/"), keys.image(f"projects/{project_id}/images/")


def _operation_key(instance: Instance) -> str:
    return keys.operation(instance.current_operation.removeprefix("operations/"))


def _becoming(operation: Stored[Operation] | None) -> Resources | None:
    if operation is None or operation.value.phase.ended:
        return None
    arguments = operation.value.arguments
    return arguments.resources if isinstance(arguments, ResizeArguments) else None


def _quota_exceeded(project: Project, over: tuple[Excess, ...]) -> ResourceExhausted:
    told = "; ".join(f"{e.measure}: {e.used} of {e.limit} are in use, {e.asked} more are asked for" for e in over)
    return ResourceExhausted(
        f"the quota of {project.name} does not allow it: {told}",
        reason="QUOTA_EXCEEDED",
        violations=[
            Violation(e.measure, project.name, f"{e.used} of {e.limit} are in use, {e.asked} more are asked for")
            for e in over
        ],
        resource=project.name,
    )
