"""Writes what a step led to: the operation, its instance, and what is held on nodes, in one transaction."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from leeward import keys
from leeward.errors import Conflict, StoreIndefinite, StoreUnavailable
from leeward_controller.domain.cluster import InstanceEvent
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import NodeAllocation
from leeward_controller.domain.operation import Operation
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.predecessors import unfinished
from leeward_controller.operations.step import Advance
from leeward_controller.records import ALLOCATIONS, INSTANCES, OPERATIONS, Commit, Stored
from leeward_controller.scheduler.candidates import candidate
from leeward_controller.scheduler.placement import PlacementRequest, plan_placement

_LONGEST_PAUSE_S = 2.0


class Superseded(Exception):
    """Another replica has claimed the operation, or it is gone: the one who hears this has no more say."""


class Recorder:
    """Writes the progress of this replica's operations."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._records = surroundings.records
        self._node_locks: dict[str, asyncio.Lock] = {}

    async def write(self, stored: Stored[Operation], new: Operation, advance: Advance) -> Stored[Operation]:
        """Replace the operation by `new` together with all that `advance` says; returns it as written.

        Waits while the store is away. A cancellation that came meanwhile is kept. Raises Superseded, or Conflict when
        the node chosen has filled up since.
        """
        async with AsyncExitStack() as stack:
            # Two operations of this replica that change one node's allocation take turns instead of colliding.
            for node in sorted({advance.reserve_on, *advance.release_from} - {""}):
                await stack.enter_async_context(self._node_locks.setdefault(node, asyncio.Lock()))
            return await self._write(stored, new, advance)

    async def _write(self, stored: Stored[Operation], new: Operation, advance: Advance) -> Stored[Operation]:
        pause_s = 0.05
        while True:
            try:
                commit = await self._compose(stored, new, advance)
                revision = await self._records.commit(commit)
                return Stored(stored.key, new, revision, stored.create_revision)
            except _NodeFilled as error:
                raise Conflict(str(error)) from error
            except Conflict:
                pass
            except (StoreUnavailable, StoreIndefinite):
                await self._surroundings.clock.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            found = await self._observe(stored.key)
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

    async def _compose(self, stored: Stored[Operation], new: Operation, advance: Advance) -> Commit:
        commit = Commit().replace(stored, new)
        instance = None
        if advance.instance or advance.remove_instance or advance.reservation or new.phase.ended:
            instance = await self._records.get(INSTANCES, keys.instance(new.instance))
        if instance is not None and instance.value.uid == new.instance_uid:
            # Else it was removed by a later operation, and this one only ends.
            await self._compose_instance(commit, new, advance, instance)
        if advance.reservation is not None:
            await self._compose_reservation(commit, advance, instance)
        for node in dict.fromkeys(advance.release_from):
            await self._compose_release(commit, node, new.instance_uid)
        if new.phase.ended:
            event = _event(new)
            commit.put(keys.event(new.instance_uid, new.id), event)
        return commit

    async def _compose_instance(
        self, commit: Commit, new: Operation, advance: Advance, found: Stored[Instance]
    ) -> None:
        if advance.remove_instance:
            commit.remove(found)
            return
        changed = advance.instance(found.value) if advance.instance else found.value
        if new.phase.ended and changed.current_operation == new.name:
            changed = replace(changed, current_operation=await self._left_running(commit, new))
        if changed != found.value:
            commit.replace(found, replace(changed, update_time=self._surroundings.clock.now()))

    async def _left_running(self, commit: Commit, new: Operation) -> str:
        """What an operation leaves behind that ends before the one it interrupted: that one, as long as it runs."""
        left = await unfinished(self._records, new)
        if left is None:
            return ""
        commit.unchanged(left)
        return left.value.name

    async def _compose_reservation(self, commit: Commit, advance: Advance, wanted: Stored[Instance] | None) -> None:
        assert advance.reservation is not None
        found = await self._allocation(advance.reserve_on)
        if wanted is not None:
            self._check_room(found.value, wanted.value)
        commit.replace(found, found.value.with_reservation(advance.reservation))

    def _check_room(self, allocation: NodeAllocation, instance: Instance) -> None:
        """The view that the choice was made from may lag; the allocation just read is what the transaction compares."""
        found = candidate(self._surroundings.view, allocation.node)
        here = [] if found is None else [replace(found, allocation=allocation)]
        request = PlacementRequest(instance.uid, instance.resources, instance.pool_id)
        placement = plan_placement(here, request, policy=self._surroundings.policy)
        if not placement.ranked:
            raise _NodeFilled(f"nodes/{allocation.node}: {placement.rejected.get(allocation.node, 'is gone')}")

    async def _compose_release(self, commit: Commit, node: str, instance_uid: str) -> None:
        found = await self._allocation(node)
        if found.value.holds(instance_uid):
            commit.replace(found, found.value.without(instance_uid))

    async def _allocation(self, node: str) -> Stored[NodeAllocation]:
        key = keys.allocation(node)
        return await self._records.get(ALLOCATIONS, key) or Stored(key, NodeAllocation(node), 0, 0)


class _NodeFilled(Exception):
    """The node that was chosen from a lagging view has no room any more."""


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
    )
