"""Typed records over the store: one kind a prefix, every write a transaction that compares what was read.

A `Commit` gathers all that one decision changes; it is applied whole, or refused with Conflict. A write whose end is
not known is resolved by reading the key back: each write bears an id of its own, so it can be recognised. It is never
sent again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from leeward import keys
from leeward.clock import Clock, Ids
from leeward.errors import Conflict, StoreIndefinite, StoreUnavailable
from leeward.store.port import Condition, CreateRevisionIs, Delete, KeyValue, ModRevisionIs, Mutation, Put, Store
from leeward_controller.domain.backup import BackupPolicy, BackupRun
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.domain.cluster import Brake, Controller, Disarm, InstanceEvent
from leeward_controller.domain.failover import FailoverRecord
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation
from leeward_controller.domain.operation import Operation
from leeward_controller.domain.project import Admission, Project
from leeward_controller.group_commit import GroupCommit
from leeward_controller.ports import Codec

T = TypeVar("T")


_LAG_S = 0.1
"""How long a picture may lag before the store is asked instead."""
_MOST_REMEMBERED = 2048
"""Of what this replica wrote itself; the picture has it long before it is forgotten."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of record: its type and the prefix its keys share."""

    type: type[T]
    prefix: str


INSTANCES = Kind(Instance, keys.INSTANCES)
OPERATIONS = Kind(Operation, keys.OPERATIONS)
NODES = Kind(Node, keys.NODES)
ALLOCATIONS = Kind(NodeAllocation, keys.ALLOCATIONS)
FENCES = Kind(FenceProof, keys.FENCES)
FAILOVERS = Kind(FailoverRecord, keys.FAILOVERS)
IMAGES = Kind(Image, keys.IMAGES)
FLAVORS = Kind(Flavor, keys.FLAVORS)
GROUPS = Kind(Group, keys.GROUPS)
PROJECTS = Kind(Project, keys.PROJECTS)
ADMISSIONS = Kind(Admission, keys.ADMISSIONS)
EVENTS = Kind(InstanceEvent, keys.EVENTS)
CONTROLLERS = Kind(Controller, keys.CONTROLLERS)
BACKUP_POLICIES = Kind(BackupPolicy, keys.BACKUP_POLICIES)
BACKUP_RUNS = Kind(BackupRun, keys.BACKUP_RUNS)
BRAKE = Kind(Brake, keys.BRAKE)
DISARM = Kind(Disarm, keys.DISARM)

ALL_KINDS: tuple[Kind[Any], ...] = (
    INSTANCES,
    OPERATIONS,
    NODES,
    ALLOCATIONS,
    FENCES,
    FAILOVERS,
    IMAGES,
    FLAVORS,
    GROUPS,
    PROJECTS,
    ADMISSIONS,
    EVENTS,
    CONTROLLERS,
    BACKUP_POLICIES,
    BACKUP_RUNS,
    BRAKE,
    DISARM,
)


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A record as it was read: `revision` is its mod revision, which is also its etag."""

    key: str
    value: T
    revision: int
    create_revision: int

    @property
    def etag(self) -> str:
        """What a client sends back to change exactly this version."""
        return str(self.revision)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Records in the order of their keys, all as of one `revision`. `more` tells that the limit cut the answer."""

    items: tuple[Stored[T], ...]
    revision: int
    more: bool


class Commit:
    """The changes of one decision, and what they rest on."""

    def __init__(self) -> None:
        self.conditions: list[Condition] = []
        self.puts: list[tuple[str, object, int]] = []
        self.deletes: list[str] = []
        self._created: dict[str, int] = {}

    def create(self, key: str, value: object, *, lease_id: int = 0) -> "Commit":
        """Write a key that must not exist."""
        self.conditions.append(ModRevisionIs(key, 0))
        self.puts.append((key, value, lease_id))
        self._created[key] = 0
        return self

    def replace(self, stored: "Stored[T]", value: T) -> "Commit":
        """Write over a record that must still be as it was read (`revision` 0: must not exist)."""
        self.conditions.append(ModRevisionIs(stored.key, stored.revision))
        self.puts.append((stored.key, value, 0))
        self._created[stored.key] = stored.create_revision
        return self

    def put(self, key: str, value: object) -> "Commit":
        """Write a key, whatever it holds now."""
        self.puts.append((key, value, 0))
        return self

    def unchanged(self, stored: "Stored[Any]") -> "Commit":
        """Require that a record is still as it was read."""
        self.conditions.append(ModRevisionIs(stored.key, stored.revision))
        return self

    def absent(self, key: str) -> "Commit":
        """Require that a key does not exist."""
        self.conditions.append(ModRevisionIs(key, 0))
        return self

    def alive(self, key: str, create_revision: int) -> "Commit":
        """Require that a key is still the one created at `create_revision` (a leader key, a replica's own key)."""
        self.conditions.append(CreateRevisionIs(key, create_revision))
        return self

    def remove(self, stored: "Stored[Any]") -> "Commit":
        """Delete a record that must still be as it was read."""
        self.conditions.append(ModRevisionIs(stored.key, stored.revision))
        self.deletes.append(stored.key)
        return self

    def discard(self, key: str) -> "Commit":
        """Delete a key, whatever it holds."""
        self.deletes.append(key)
        return self

    def written_at(self, revision: int) -> Iterator["Stored[Any]"]:
        """The records that it has written, if `revision` is what came of it; not those that were just put."""
        for key, value, _ in self.puts:
            if key in self._created:
                yield Stored(key, value, revision, self._created[key] or revision)


class Picture(Protocol):
    """What a replica has heard of the store so far."""

    def known(self, key: str) -> Stored[Any] | None:
        """The record at `key` as last heard of."""
        ...

    def covers(self, revision: int) -> bool:
        """Whether all that the store held at `revision` is in it."""
        ...

    async def reached(self, revision: int, *, timeout_s: float) -> bool:
        """Wait until it covers that; False when it does not in time."""
        ...


class NoPicture:
    """Nothing was heard of anything."""

    def known(self, key: str) -> Stored[Any] | None:
        return None

    def covers(self, revision: int) -> bool:
        return False

    async def reached(self, revision: int, *, timeout_s: float) -> bool:
        return False


class Records:
    """The cluster's state, typed."""

    def __init__(
        self,
        *,
        store: Store,
        codec: Codec,
        ids: Ids,
        clock: Clock,
        picture: Picture | None = None,
    ) -> None:
        """A record that is read at the very revision at which the `picture` has it is not decoded anew."""
        self.store = store
        self._commits = GroupCommit(store)
        self._picture = picture or NoPicture()
        self._written: dict[str, Stored[Any]] = {}
        self._codec = codec
        self._ids = ids
        self._clock = clock

    async def get(self, kind: Kind[T], key: str) -> Stored[T] | None:
        """The record at `key`, linearizable, or None. Raises StoreUnavailable."""
        found = await self.store.get(key)
        return None if found is None else self.decode(kind, found)

    async def get_since(self, kind: Kind[T], key: str, *, since: int | None) -> Stored[T] | None:
        """The record as it was at revision `since`, or later; None: as it is now, as `get`. Raises StoreUnavailable.

        It takes no call while it is what this replica wrote itself, or once the picture has come so far. What is then
        written on the strength of it must be compared with it.
        """
        if since is None:
            return await self.get(kind, key)
        written = self._written.get(key)
        if written is not None and written.revision >= since and not self._picture.covers(written.revision):
            return written
        if await self._picture.reached(since, timeout_s=_LAG_S):
            return self._picture.known(key)
        return await self.get(kind, key)

    def recall(self, key: str, revision: int) -> Stored[Any] | None:
        """The record at `key` if it is what this replica wrote at `revision`, a short while ago."""
        written = self._written.get(key)
        return written if written is not None and written.revision == revision else None

    async def list(
        self, kind: Kind[T], *, prefix: str = "", limit: int = 0, start_after: str = "", revision: int = 0
    ) -> Page[T]:
        """Records whose keys begin with `prefix` (default: all of the kind). Raises StoreUnavailable, Compacted."""
        found = await self.store.list(prefix or kind.prefix, limit=limit, start_after=start_after, revision=revision)
        return Page(tuple(self.decode(kind, kv) for kv in found.items), found.revision, found.more)

    def decode(self, kind: Kind[T], found: KeyValue) -> Stored[T]:
        """A typed record from a key and its value."""
        known = self._picture.known(found.key)
        if known is not None and known.revision == found.mod_revision and isinstance(known.value, kind.type):
            return known
        value = self._codec.decode(kind.type, found.value)
        return Stored(found.key, value, found.mod_revision, found.create_revision)

    async def commit(self, commit: Commit) -> int:
        """Apply all, or nothing. Returns the revision that every record written now has.

        Raises Conflict (a comparison failed), StoreUnavailable (not written), StoreIndefinite (still not known after
        reading back, because the store does not answer).
        """
        write_id = self._ids.new()
        mutations: list[Mutation] = [
            Put(key, self._codec.encode(value, write_id=write_id), lease_id) for key, value, lease_id in commit.puts
        ]
        mutations += [Delete(key) for key in commit.deletes]
        try:
            outcome = await self._commits.transact(commit.conditions, mutations)
        except StoreIndefinite:
            return await self._resolve(commit.conditions, mutations, write_id)
        if not outcome.succeeded:
            raise Conflict("somebody else changed it first; read it again")
        self._remember(commit, outcome.revision)
        return outcome.revision

    def _remember(self, commit: Commit, revision: int) -> None:
        for key in commit.deletes:
            self._written.pop(key, None)
        for written in commit.written_at(revision):
            self._written.pop(written.key, None)
            self._written[written.key] = written
        while len(self._written) > _MOST_REMEMBERED:
            del self._written[next(iter(self._written))]

    async def _resolve(self, conditions: Sequence[Condition], mutations: Sequence[Mutation], write_id: str) -> int:
        """Find out whether a write of ours happened, by looking for its id where it would be.

        When the key still is as the write compared it, the write may yet arrive; the caller then gets StoreIndefinite
        and observes again. Any later write on the same comparison excludes this one, so nothing can happen twice.
        """
        marker = next((m for m in mutations if isinstance(m, Put)), None)
        if marker is None:
            raise StoreIndefinite("the store did not answer, and the write left no mark to look for")
        found = await self._read_back(marker.key)
        if found is not None and self._codec.write_id(found.value) == write_id:
            return found.mod_revision
        compared = next((c.revision for c in conditions if isinstance(c, ModRevisionIs) and c.key == marker.key), None)
        if compared is not None and (found.mod_revision if found else 0) != compared:
            raise Conflict("somebody else changed it first; read it again")
        raise StoreIndefinite("the store did not answer, and it is not known whether the write will happen")

    async def _read_back(self, key: str) -> KeyValue | None:
        for pause_s in (0.05, 0.2, 0.5, 1.0, 2.0):
            try:
                return await self.store.get(key)
            except StoreUnavailable:
                await self._clock.sleep(pause_s)
        try:
            return await self.store.get(key)
        except StoreUnavailable as error:
            raise StoreIndefinite("the store did not answer, and neither did it when asked again") from error
