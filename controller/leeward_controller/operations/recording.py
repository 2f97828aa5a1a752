"""Writes what a step led to: the operation, its instance or node, and what is held on nodes, in one transaction."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from leeward import keys
from leeward.errors import Conflict, FailedPrecondition, StoreIndefinite, StoreUnavailable
from leeward_controller.domain.cluster import InstanceEvent
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.holding import Holdings, PlaceTaken
from leeward_controller.operations.predecessors import unfinished
from leeward_controller.operations.step import Advance
from leeward_controller.operations.subject import read_subject
from leeward_controller.records import FENCES, OPERATIONS, Commit, Stored

_LONGEST_PAUSE_S = 2.0
_MOST_PROOFS = 64


class Superseded(Exception):
    """Another replica has claimed the operation, or it is gone: the one who hears this has no more say."""


class Recorder:
    """Writes the progress of this replica's operations."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._records = surroundings.records
        self._holdings = Holdings(surroundings)
        self._node_locks: dict[str, asyncio.Lock] = {}

    async def begin(
        self, commit: Commit, subject: Stored[Any], operation: Operation, advance: Advance
    ) -> Stored[Operation]:
        """Create an operation on `subject` in one transaction with what `commit` and `advance` say; returns it.

        Raises Conflict, StoreUnavailable, StoreIndefinite, and what `Holdings.compose` raises.
        """
        async with self._turns(advance):
            key = keys.operation(operation.id)
            await self._compose_subject(commit.create(key, operation), operation, advance, subject)
            instance = subject.value if isinstance(subject.value, Instance) else None
            try:
                await self._holdings.compose(commit, operation, advance, instance, since=0)
            except PlaceTaken as error:
                raise Conflict(str(error)) from error
            revision = await self._records.commit(commit)
        return Stored(key, operation, revision, revision)

    async def write(self, stored: Stored[Operation], new: Operation, advance: Advance) -> Stored[Operation]:
        """Replace the operation by `new` together with all that `advance` says; returns it as written.

        Waits while the store is away. A cancellation that came meanwhile is kept. Raises Superseded, Conflict when the
        place chosen was taken since, and what `Holdings.compose` raises.
        """
        async with self._turns(advance):
            return await self._write(stored, new, advance)

    @asynccontextmanager
    async def _turns(self, advance: Advance) -> AsyncIterator[None]:
        """Two operations of this replica that change one node's allocation take turns instead of colliding."""
        async with AsyncExitStack() as stack:
            for node in sorted({advance.reserve_on, *advance.release_from} - {""}):
                await stack.enter_async_context(self._node_locks.setdefault(node, asyncio.Lock()))
            yield

    async def _write(self, stored: Stored[Operation], new: Operation, advance: Advance) -> Stored[Operation]:
        pause_s = 0.05
        since: int | None = stored.revision
        while True:
            try:
                commit = await self._compose(stored, new, advance, since=since)
                revision = await self._records.commit(commit)
                return Stored(stored.key, new, revision, stored.create_revision)
            except PlaceTaken as error:
                raise Conflict(str(error)) from error
            except Conflict:
                pass
            except (StoreUnavailable, StoreIndefinite):
                await self._surroundings.clock.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            found = await self._observe(stored.key)
            since = None
            if found.value == new:
                return found
            stored, new = self._merge(stored, new, found)

    def _merge(
        self, stored: Stored[Operation], new: Operation, found: Stored[Operation]
    ) -> tuple[Stored[Operation], Operation]:
        """Go on from what is there now, when only a cancellation was added; else this driver is superseded."""
        if found.revision == stored.revision:
            return stored, new
        if replace(found.value, cancel_requested=stored.value.cancel_requested) != stored.value:
            raise Superseded(f"{new.name} is driven by {found.value.owner or 'nobody'} now")
        return found, replace(new, cancel_requested=found.value.cancel_requested)

    async def _observe(self, key: str) -> Stored[Operation]:
        pause_s = 0.05
        while True:
            try:
                found = await self._records.get(OPERATIONS, key)
            except StoreUnavailable:
                await self._surroundings.clock.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            if found is None:
                raise Superseded(f"{key} is gone")
            return found

    async def _compose(
        self, stored: Stored[Operation], new: Operation, advance: Advance, *, since: int | None
    ) -> Commit:
        commit = Commit().replace(stored, new)
        subject = None
        if advance.changes_subject or advance.reservation or advance.release_from or new.phase.ended:
            subject = await read_subject(self._records, new, since=since)
        if subject is not None:
            # Else it was removed by a later operation, and this one only ends.
            await self._compose_subject(commit, new, advance, subject)
        instance = subject.value if subject is not None and isinstance(subject.value, Instance) else None
        await self._holdings.compose(commit, new, advance, instance, since=since)
        if new.phase.ended and new.instance:
            event = _event(new)
            commit.put(keys.event(new.instance_uid, new.id), event)
        return commit

    async def _compose_subject(self, commit: Commit, new: Operation, advance: Advance, found: Stored[Any]) -> None:
        if advance.remove_node:
            await self._compose_empty(commit, new.node)
        if advance.remove_instance or advance.remove_node:
            commit.remove(found)
            return
        change: Callable[[Any], Any] | None = advance.node if new.node else advance.instance
        changed = change(found.value) if change else found.value
        if new.phase.ended and changed.current_operation == new.name:
            changed = replace(changed, current_operation=await self._left_running(commit, new))
        if changed != found.value:
            if isinstance(changed, Instance):
                changed = replace(changed, update_time=self._surroundings.clock.now())
            commit.replace(found, changed)

    async def _compose_empty(self, commit: Commit, node: str) -> None:
        """Drop all that is kept of a node beside its record. Raises FailedPrecondition when something is held on it."""
        found = await self._holdings.allocation(node, since=None)
        if found.value.reservations:
            held = ", ".join(reservation.instance for reservation in found.value.reservations[:8])
            raise FailedPrecondition(f"nodes/{node} is not empty: {held}", reason="NOT_EMPTY", resource=f"nodes/{node}")
        if found.revision:
            commit.remove(found)
        else:
            commit.unchanged(found)
        for proof in (await self._records.list(FENCES, prefix=keys.fence(node, ""), limit=_MOST_PROOFS)).items:
            commit.discard(proof.key)

    async def _left_running(self, commit: Commit, new: Operation) -> str:
        """What an operation leaves behind that ends before the one it interrupted: that one, as long as it runs."""
        left = await unfinished(self._records, new)
        if left is None:
            return ""
        commit.unchanged(left)
        return left.value.name


def _event(operation: Operation) -> InstanceEvent:
    assert operation.end_time is not None
    outcome = operation.phase.value if operation.error is None else f"{operation.phase}: {operation.error.message}"
    return InstanceEvent(
        instance_uid=operation.instance_uid,
        operation=operation.name,
        type=operation.type.value,
        requested_by=operation.requested_by,
        outcome=outcome,
        start_time=operation.create_time,
        end_time=operation.end_time,
        steps=operation.history,
    )
