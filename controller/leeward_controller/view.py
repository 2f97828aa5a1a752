"""A replica's picture of the cluster, fed by one watch.

It serves decisions that a transaction checks again anyway (placement, failover, who owns an operation, an operation's
next step), and never a client's read. It lags the store by a watch's delay, and `synced` tells whether it is being fed
at all.
"""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from leeward import keys
from leeward.agent.types import NodeReport
from leeward.clock import Clock, await_event
from leeward.errors import Compacted, DataLoss, StoreUnavailable
from leeward.store.port import Change, KeyValue, Store
from leeward_controller.domain.backup import BackupPolicy, BackupRun
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.cluster import Brake, Controller, Disarm
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation
from leeward_controller.domain.operation import Operation
from leeward_controller.ports import Codec
from leeward_controller.records import (
    ALLOCATIONS,
    BACKUP_POLICIES,
    BACKUP_RUNS,
    BRAKE,
    CONTROLLERS,
    DISARM,
    FENCES,
    GROUPS,
    IMAGES,
    INSTANCES,
    NODES,
    OPERATIONS,
    Kind,
    Stored,
)

T = TypeVar("T")
Told = Callable[[int, Stored[Any] | None], None]
Recall = Callable[[str, int], Stored[Any] | None]
log = structlog.get_logger()

_WATCHED: tuple[Kind[Any], ...] = (
    ALLOCATIONS,
    BACKUP_POLICIES,
    BACKUP_RUNS,
    BRAKE,
    CONTROLLERS,
    DISARM,
    FENCES,
    GROUPS,
    IMAGES,
    INSTANCES,
    NODES,
    OPERATIONS,
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A node's heartbeat key as it stands: the report in it, and when this incarnation of it was created."""

    report: NodeReport
    create_revision: int
    mod_revision: int


class ClusterView:
    """All records that decisions need, by key; each a `Stored`. Read-only for everybody else.

    `promised_gib` is the disk that all nodes' allocations together hold, by pool. `unfinished` are those operations
    that have not ended.
    """

    def __init__(self, *, store: Store, codec: Codec, clock: Clock) -> None:
        self._store = store
        self._codec = codec
        self._clock = clock
        self._tables: dict[str, dict[str, Stored[Any]]] = {kind.prefix: {} for kind in _WATCHED}
        self.leases: dict[str, Lease] = {}
        self.leader: KeyValue | None = None
        self.revision = 0
        self.synced = False
        self.last_trouble_s = float("-inf")
        self._by_node: dict[str, set[str]] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._followers: dict[str, list[Told]] = {}
        self._changed = asyncio.Event()
        self._awaited: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._recall: Recall = lambda key, revision: None
        self._topology = 0
        self._derived: dict[Callable[[ClusterView], Any], tuple[int, Any]] = {}
        self.promised_gib: Counter[str] = Counter()
        self.unfinished: dict[str, Stored[Operation]] = {}

    @property
    def instances(self) -> dict[str, Stored[Instance]]:
        """By key."""
        return self._tables[INSTANCES.prefix]

    @property
    def operations(self) -> dict[str, Stored[Operation]]:
        """By key; those that ended stay until they are collected."""
        return self._tables[OPERATIONS.prefix]

    @property
    def nodes(self) -> dict[str, Stored[Node]]:
        """By key."""
        return self._tables[NODES.prefix]

    @property
    def allocations(self) -> dict[str, Stored[NodeAllocation]]:
        """By key."""
        return self._tables[ALLOCATIONS.prefix]

    @property
    def groups(self) -> dict[str, Stored[Group]]:
        """By key."""
        return self._tables[GROUPS.prefix]

    @property
    def controllers(self) -> dict[str, Stored[Controller]]:
        """By key."""
        return self._tables[CONTROLLERS.prefix]

    @property
    def fences(self) -> dict[str, Stored[FenceProof]]:
        """By key."""
        return self._tables[FENCES.prefix]

    @property
    def images(self) -> dict[str, Stored[Image]]:
        """By key."""
        return self._tables[IMAGES.prefix]

    @property
    def backup_policies(self) -> dict[str, Stored[BackupPolicy]]:
        """By key."""
        return self._tables[BACKUP_POLICIES.prefix]

    @property
    def backup_runs(self) -> dict[str, Stored[BackupRun]]:
        """By key."""
        return self._tables[BACKUP_RUNS.prefix]

    @property
    def brake(self) -> Stored[Brake] | None:
        """The brake on evacuation while its cause is there; it may have been released."""
        return self._tables[BRAKE.prefix].get(keys.BRAKE)

    @property
    def disarm(self) -> Stored[Disarm] | None:
        """What disarms failover, while it does."""
        return self._tables[DISARM.prefix].get(keys.DISARM)

    def instances_on(self, node_id: str) -> list[Stored[Instance]]:
        """The instances recorded on a node, in the order of their names."""
        return [self.instances[key] for key in sorted(self._by_node.get(node_id, ()))]

    def count_on(self, node_id: str) -> int:
        """How many instances are recorded on a node."""
        return len(self._by_node.get(node_id, ()))

    def known(self, key: str) -> Stored[Any] | None:
        """The record at `key` as last heard of, of whatever kind."""
        for kind in _WATCHED:
            if key.startswith(kind.prefix):
                return self._tables[kind.prefix].get(key)
        return None

    def recall_by(self, recall: Recall) -> None:
        """Let `recall(key, revision)` tell of records that need not be decoded, since this replica wrote them."""
        self._recall = recall

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener(key)` after each change that was taken in; it must be quick and must not raise.

        Returns how to stop.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @contextmanager
    def following(self, key: str, told: Told) -> Iterator[None]:
        """While in the block, call `told(revision, record)` for every single change of one record; None: it is gone.

        Begin to follow before you read the record, and leave out what is no newer than that: then nothing is missed,
        except what the store itself had forgotten when this view had to list anew.
        """
        followers = self._followers.setdefault(key, [])
        followers.append(told)
        try:
            yield
        finally:
            followers.remove(told)
            if not followers:
                self._followers.pop(key, None)

    def of_topology(self, derive: Callable[["ClusterView"], T]) -> T:
        """What `derive` makes of the nodes and their heartbeats; made anew only when one of them has changed."""
        known = self._derived.get(derive)
        if known is None or known[0] != self._topology:
            known = self._derived[derive] = (self._topology, derive(self))
        made: T = known[1]
        return made

    def covers(self, revision: int) -> bool:
        """Whether all that the store held at `revision` is in here."""
        return self.synced and self.revision >= revision

    async def reached(self, revision: int, *, timeout_s: float) -> bool:
        """Wait until all that the store held at `revision` is in here; False when it does not come in time."""
        if self.covers(revision):
            return True
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._awaited, (revision, next(self._numbers), arrival))
        await asyncio.wait((arrival,), timeout=timeout_s)
        arrived = arrival.done()
        arrival.cancel()
        return arrived and self.synced

    async def wait_for(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait until `condition` holds, looking again after each change; False when the time is up."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while not condition():
            remaining_s = deadline_s - self._clock.monotonic_s()
            if remaining_s <= 0:
                return False
            await await_event(self._changed, clock=self._clock, within_s=remaining_s)
        return True

    async def run(self) -> None:
        """Follow the store until cancelled: lists anew when history is gone, waits while the store is not there."""
        while True:
            try:
                await self._follow()
            except Compacted:
                log.info("view.relist", reason="history compacted")
            except StoreUnavailable as error:
                self._trouble()
                log.warning("view.store_unavailable", error=error.message)
                await self._clock.sleep(0.5)

    async def _follow(self) -> None:
        listed = await self._store.list(keys.ROOT)
        self._replace_all(listed.items, listed.revision)
        async with self._store.watch(keys.ROOT, from_revision=listed.revision + 1) as batches:
            async for batch in batches:
                for change in batch.changes:
                    self._take(change)
                self._reach(batch.revision)
                if batch.changes:
                    self._wake([change.key for change in batch.changes])

    def _trouble(self) -> None:
        self.synced = False
        self.last_trouble_s = self._clock.monotonic_s()

    def _replace_all(self, items: tuple[KeyValue, ...], revision: int) -> None:
        before = {key for table in self._tables.values() for key in table} | set(map(keys.lease, self.leases))
        for table in self._tables.values():
            table.clear()
        self.leases.clear()
        self._by_node.clear()
        self.promised_gib.clear()
        self.unfinished.clear()
        self._topology += 1
        self.leader = None
        for kv in items:
            self._take(Change(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease_id))
        present = {kv.key for kv in items}
        for key in self._followers.keys() - present:
            self._tell(key, revision, None)
        self.synced = True
        self._reach(revision)
        self._wake(sorted(before | present))

    def _reach(self, revision: int) -> None:
        self.revision = revision
        while self._awaited and self._awaited[0][0] <= revision:
            _, _, arrival = heapq.heappop(self._awaited)
            if not arrival.done():
                arrival.set_result(None)

    def _take(self, change: Change) -> None:
        if change.key == keys.LEADER:
            self.leader = None if change.value is None else _key_value(change, change.value)
        elif change.key.startswith(keys.LEASES):
            self._take_lease(change)
        else:
            for kind in _WATCHED:
                if change.key.startswith(kind.prefix):
                    self._take_record(kind, change)
                    return

    def _take_lease(self, change: Change) -> None:
        self._topology += 1
        node_id = change.key.removeprefix(keys.LEASES)
        if change.value is None:
            self.leases.pop(node_id, None)
            return
        try:
            report = self._codec.decode_report(change.value)
        except DataLoss as error:
            # A node can write what it likes to its own key; that must not stop the controllers from seeing the rest.
            log.warning("view.heartbeat_unreadable", node=node_id, error=error.message)
            self.leases.pop(node_id, None)
            return
        self.leases[node_id] = Lease(report, change.create_revision, change.mod_revision)

    def _take_record(self, kind: Kind[Any], change: Change) -> None:
        table = self._tables[kind.prefix]
        before = table.pop(change.key, None)
        if kind is NODES:
            self._topology += 1
        if kind is ALLOCATIONS and before is not None:
            self.promised_gib.subtract(before.value.disk_gib_by_pool)
        if kind is INSTANCES and before is not None:
            self._by_node.get(before.value.node, set()).discard(change.key)
        if kind is OPERATIONS:
            self.unfinished.pop(change.key, None)
        if change.value is None:
            self._tell(change.key, change.mod_revision, None)
            return
        stored = self._recall(change.key, change.mod_revision)
        if stored is None:
            value = self._codec.decode(kind.type, change.value)
            stored = Stored(change.key, value, change.mod_revision, change.create_revision)
        value = stored.value
        table[change.key] = stored
        self._tell(change.key, change.mod_revision, stored)
        if kind is ALLOCATIONS:
            self.promised_gib.update(value.disk_gib_by_pool)
        if kind is OPERATIONS and not value.phase.ended:
            self.unfinished[change.key] = stored
        if kind is INSTANCES and value.node:
            self._by_node.setdefault(value.node, set()).add(change.key)

    def _tell(self, key: str, revision: int, stored: Stored[Any] | None) -> None:
        for told in tuple(self._followers.get(key, ())):
            told(revision, stored)

    def _wake(self, changed: list[str]) -> None:
        for key in changed:
            for listener in tuple(self._listeners):
                listener(key)
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def _key_value(change: Change, value: bytes) -> KeyValue:
    return KeyValue(change.key, value, change.create_revision, change.mod_revision, change.lease_id)
