"""Tells what happens in a cluster's records, in words and by name: the same run always gives the same lines."""

import re
from collections.abc import Callable
from typing import Any

from leeward import keys
from leeward.store.memory import MemoryStore
from leeward.store.port import Change
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.cluster import Brake, Controller, Disarm
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation, NodeDuty
from leeward_controller.domain.operation import Operation
from leeward_controller.records import ALL_KINDS, Kind

_DUTIES = {
    NodeDuty.IN_SERVICE: "uncordoned",
    NodeDuty.CORDONED: "cordoned",
    NodeDuty.DRAINING: "draining",
    NodeDuty.MAINTENANCE: "in maintenance",
}

_ID = re.compile(r"\b[a-z2-7]{26}\b")

Listener = Callable[[object, object], None]
"""Called with a record before and after a change; None where there was none or is none any more."""


def short(name: str) -> str:
    """The last part of a resource's name."""
    return name.rpartition("/")[2]


class Narrator:
    """Follows the store. `names` maps ids to what people call the thing; it learns most of them by itself."""

    def __init__(self, tell: Callable[[str], None], *, steps: bool = False) -> None:
        self.names: dict[str, str] = {}
        self.leader = ""
        self._tell = tell
        self._steps = steps
        self._codec = StateCodec()
        self._known: dict[str, Any] = {}
        self._listeners: list[Listener] = []
        self._boots: dict[str, list[str]] = {}

    def listen(self, listener: Listener) -> None:
        """Show each change to somebody else too."""
        self._listeners.append(listener)

    def plain(self, text: str) -> str:
        """The text with names for ids."""
        return _ID.sub(lambda match: self.names.get(match.group(), match.group()), text)

    def boot(self, node: str, boot_id: str) -> None:
        """A node begins a new life."""
        boots = self._boots.setdefault(node, [])
        boots.append(boot_id)
        self.names[boot_id] = f"{len(boots)} of {node}"

    async def run(self, store: MemoryStore) -> None:
        """Follow until cancelled."""
        async with store.watch(keys.ROOT, from_revision=1) as batches:
            async for batch in batches:
                for change in batch.changes:
                    self._take(change)

    def _take(self, change: Change) -> None:
        if change.key == keys.LEADER:
            self._take_leader(change)
        elif change.key.startswith(keys.LEASES):
            self._take_lease(change)
        elif (kind := _kind_of(change.key)) is not None:
            before = self._known.pop(change.key, None)
            after = None if change.value is None else self._codec.decode(kind.type, change.value)
            if after is not None:
                self._known[change.key] = after
            self._learn(after)
            for line in self._lines(before, after):
                self._tell(self.plain(line))
            for listener in self._listeners:
                listener(before, after)

    def _take_leader(self, change: Change) -> None:
        if change.value is None:
            self.leader = ""
            self._tell("nobody leads")
        else:
            self.leader = _place(self._codec.decode(Controller, change.value))
            self._tell(f"{self.leader} leads")

    def _take_lease(self, change: Change) -> None:
        node, was_there = change.key.removeprefix(keys.LEASES), change.key in self._known
        if change.value is None:
            self._known.pop(change.key, None)
            self._tell(f"{node}: its etcd lease ended")
            return
        self._known[change.key] = change.value
        if not was_there:
            self._tell(f"{node}: its etcd lease is there")

    def _learn(self, after: object) -> None:
        match after:
            case Instance():
                self.names[after.uid] = short(after.name)
            case Operation():
                self.names[after.id] = f"({_story(after)})"
            case Controller():
                self.names[after.controller] = _place(after)

    def _lines(self, before: object, after: object) -> list[str]:
        match before, after:
            case _, Instance():
                return _instance(before if isinstance(before, Instance) else None, after)
            case Instance(), None:
                return [f"{short(before.name)} is gone"]
            case None, Operation():
                return [f"{_story(after)} begins, asked for by {after.requested_by}, driven by {after.owner}"]
            case Operation(), Operation():
                return _operation(before, after, steps=self._steps)
            case _, Node():
                return _node(before if isinstance(before, Node) else None, after)
            case Node(), None:
                return [f"{before.node} is removed"]
            case _, FenceProof():
                return [f"{after.node}: proof of {after.kind}: {after.evidence}"]
            case FenceProof(), None:
                return [f"{before.node}: the proof for boot {before.boot_id} is dropped"]
            case None, Brake():
                return [f"brake: {after.reason}"]
            case Brake(), Brake(release=word) if word is not None and before.release is None:
                return [f"brake released by {word.released_by}: {word.reason}"]
            case Brake(), Brake() if before.holds is not after.holds or before.unwell is not after.unwell:
                return [f"brake{'' if after.holds else ' released still'}: {after.reason}"]
            case _, Disarm():
                return [f"failover is disarmed by {after.disarmed_by}: {after.reason}"]
            case Disarm(), None:
                return ["failover is armed"]
            case Brake(), None:
                return ["brake released"]
            case None, Controller():
                return [f"{_place(after)} is registered"]
            case Controller(), None:
                return [f"{_place(before)} is not registered any more"]
            case _, NodeAllocation() if self._steps:
                held = ", ".join(short(reservation.instance) for reservation in after.reservations)
                return [f"{after.node} is reserved for: {held or 'nobody'}"]
        return []


def _kind_of(key: str) -> Kind[Any] | None:
    return next((kind for kind in ALL_KINDS if key.startswith(kind.prefix)), None)


def _place(controller: Controller) -> str:
    return controller.address.partition(".")[0]


def _story(operation: Operation) -> str:
    return f"{operation.type} {short(operation.subject)}"


def _instance(before: Instance | None, after: Instance) -> list[str]:
    if before is not None and (before.state, before.node, before.run_epoch) == (
        after.state,
        after.node,
        after.run_epoch,
    ):
        return []
    where = f" on {after.node}" if after.node else ""
    fault = f": {after.fault}" if after.fault else ""
    return [f"{short(after.name)} is {after.state}{where}, epoch {after.run_epoch}{fault}"]


def _operation(before: Operation, after: Operation, *, steps: bool) -> list[str]:
    lines = []
    if before.owner != after.owner or before.claims != after.claims:
        lines.append(f"{_story(after)} is taken over by {after.owner} at {after.step}")
    if after.cancel_requested and not before.cancel_requested:
        lines.append(f"{_story(after)} is asked to stop")
    if steps and len(after.history) and before.history != after.history:
        last = after.history[-1]
        lines.append(f"{_story(after)}: {last.step} {last.outcome}")
    if after.phase is not before.phase:
        cause = after.error or after.undo_cause
        lines.append(f"{_story(after)} {after.phase}{f': {cause.message}' if cause else ''}")
    return lines


def _node(before: Node | None, after: Node) -> list[str]:
    lines = []
    if before is None or before.condition is not after.condition:
        lines.append(f"{after.node} is {after.condition}: {after.reason}")
    if before is not None and before.duty is not after.duty:
        lines.append(f"{after.node} is {_DUTIES[after.duty]}")
    return lines
