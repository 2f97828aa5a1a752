"""Follows the records, transaction by transaction, and holds each end of an operation against the table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TypeVar

from leeward import keys
from leeward.store.memory import MemoryStore
from leeward.store.port import Change
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import Operation, OperationPhase, OperationType
from leeward_controller.operations.definitions import DEFINITIONS
from tests.simulation.sequences.coverage import NODE_OPERATIONS, Coverage
from tests.simulation.sequences.model import Version, wrong_end

T = TypeVar("T")


class History:
    """All that instances and operations were. The first wrong end is kept, for `check` to raise."""

    def __init__(self, *, tell: Callable[[str], None], coverage: Coverage) -> None:
        self.instances: dict[str, Instance] = {}  # By name.
        self.operations: dict[str, Operation] = {}  # By name.
        self.fenced: set[str] = set()  # The nodes that were proved to run nothing any more, at any time.
        self.wrong: str = ""
        self._tell = tell
        self._coverage = coverage
        self._codec = StateCodec()
        self._open: dict[str, list[InstanceState]] = {}  # By operation: the states since it began, in their order.
        self._following: list[tuple[str, list[Version]]] = []

    async def run(self, store: MemoryStore) -> None:
        """Follow until cancelled."""
        async with store.watch(keys.ROOT, from_revision=1) as batches:
            async for batch in batches:
                for _, changes in groupby(batch.changes, key=lambda change: change.mod_revision):
                    self._take(list(changes))

    def check(self) -> None:
        """Raise AssertionError for what was found."""
        assert not self.wrong, self.wrong

    def version(self, name: str) -> Version:
        """An instance as it stands."""
        instance = self.instances.get(name)
        return Version(instance, self._running(instance) if instance else None)

    @contextmanager
    def versions(self, name: str) -> Iterator[list[Version]]:
        """All that an instance is while in the block."""
        seen = [self.version(name)]
        entry = (name, seen)
        self._following.append(entry)
        try:
            yield seen
        finally:
            self._following.remove(entry)

    def _take(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.INSTANCES):
                self._take_instance(change)
            elif change.key.startswith(keys.OPERATIONS):
                self._take_operation(change)
            elif change.key.startswith(keys.FENCES):
                self.fenced.add(change.key.removeprefix(keys.FENCES).partition("/")[0])
        for name in list(self._open):
            operation = self.operations[name]
            if operation.phase.ended:
                self._judge(operation, self._open.pop(name))
            elif not self._open[name] or self._open[name][-1] is not self._state(operation):
                self._open[name].append(self._state(operation))
        for name, seen in self._following:
            version = self.version(name)
            if version != seen[-1]:
                seen.append(version)

    def _take_instance(self, change: Change) -> None:
        name = change.key.removeprefix(keys.INSTANCES)
        before = self.instances.pop(name, None)
        if change.value is None:
            return
        after = self._codec.decode(Instance, change.value)
        self.instances[name] = after
        if before is None or before.state is not after.state:
            self._coverage.states[after.state] += 1

    def _take_operation(self, change: Change) -> None:
        name = "operations/" + change.key.removeprefix(keys.OPERATIONS)
        before = self.operations.pop(name, None)
        if change.value is None:
            return
        self.operations[name] = self._codec.decode(Operation, change.value)
        if before is None:
            self._open[name] = []

    def _judge(self, operation: Operation, states: list[InstanceState]) -> None:
        self._coverage.ends[operation.type, operation.phase] += 1
        if operation.type in NODE_OPERATIONS:
            return
        wrong = wrong_end(
            operation.type,
            # One that waited for another's end starts from where that left the instance.
            sources=set(states) if operation.predecessor else set(states[:1]),
            end=self._state(operation),
            succeeded=operation.phase is OperationPhase.SUCCEEDED,
            committed=DEFINITIONS[operation.type].past_commit(operation.step),
        )
        if wrong:
            wrong = f"{operation.instance.rpartition('/')[2]}: {wrong}"
            if operation.error is not None:
                wrong += f" ({operation.error.message})"
            self._tell(f"VIOLATION: {wrong}")
            self.wrong = self.wrong or wrong

    def _state(self, operation: Operation) -> InstanceState:
        instance = self.instances.get(operation.instance)
        if instance is None or instance.uid != operation.instance_uid:
            return InstanceState.DELETED
        return instance.state

    def _running(self, instance: Instance) -> OperationType | None:
        operation = self.operations.get(instance.current_operation)
        return None if operation is None or operation.phase.ended else operation.type
