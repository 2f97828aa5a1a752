"""What Leeward asks of its durable store.

The model is etcd's: a flat, ordered key space with one revision counter, compare-and-set transactions, leases, and
watches that resume from a revision. The in-memory twin and the etcd adapter pass one contract suite
(`tests/contract/test_store.py`).

Errors are *definite* (`StoreUnavailable`: nothing was written) or *indefinite* (`StoreIndefinite`: the write may have
happened). Reads only ever raise `StoreUnavailable`. No method retries a write whose end is not known.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

MAX_OPERATIONS_PER_TRANSACTION = 128
MAX_REQUEST_BYTES = 1_572_864


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as of one revision. `lease_id` is 0 where no lease holds it."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """Keys in ascending order, read at one `revision`. `more` tells that the limit cut the answer."""

    items: tuple[KeyValue, ...]
    revision: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class ModRevisionIs:
    """Holds when the key was last changed at `revision`; 0 means that the key does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class CreateRevisionIs:
    """Holds when the key was created at `revision`; 0 means that the key does not exist."""

    key: str
    revision: int


Condition = ModRevisionIs | CreateRevisionIs


@dataclass(frozen=True, slots=True)
class Put:
    """Write a value. With `lease_id` the key goes when the lease does; 0 means it stays."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; removing one that does not exist is no error."""

    key: str


Mutation = Put | Delete


@dataclass(frozen=True, slots=True)
class Transaction:
    """What became of a transaction: `succeeded` is False when a condition did not hold and nothing was written.

    `revision` is the store's revision afterwards; when it succeeded, every key written has it as its mod revision.
    """

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one key. `value` is None when the key was deleted or its lease ended."""

    key: str
    value: bytes | None
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes of one or more whole revisions, in order; empty `changes` is a bookmark.

    After the batch the watcher has seen everything up to and including `revision`.
    """

    changes: tuple[Change, ...]
    revision: int


class Store(Protocol):
    """A linearizable key-value store. Keys are text, ordered by their UTF-8 bytes."""

    async def get(self, key: str) -> KeyValue | None:
        """The key's latest value, or None. Linearizable. Raises StoreUnavailable."""
        ...

    async def list(
        self, prefix: str, *, limit: int = 0, start_after: str = "", revision: int = 0, keys_only: bool = False
    ) -> Range:
        """Keys below `prefix` in order, after `start_after`, at most `limit` (0: all), as of `revision` (0: latest).

        Raises StoreUnavailable, or Compacted when `revision` is gone.
        """
        ...

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        """Apply all mutations if all conditions hold, else none.

        Raises StoreUnavailable (not written), StoreIndefinite (maybe written), LeaseNotFound (a Put names a lease that
        is gone; not written), InvalidArgument (over MAX_OPERATIONS_PER_TRANSACTION or MAX_REQUEST_BYTES).
        """
        ...

    def watch(self, prefix: str, *, from_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """Every change below `prefix` from `from_revision` on, in order, none missed, none twice, for ever.

        Survives the loss of members. A bookmark comes at least every few seconds while connected. Raises Compacted
        when the revision to start or resume from is gone.
        """
        ...

    async def grant_lease(self, ttl_s: int) -> int:
        """A new lease's id. Raises StoreUnavailable; an indefinite end is harmless, since an unknown lease expires."""
        ...

    async def keep_alive(self, lease_id: int, *, deadline_s: float = 1.0) -> float:
        """Renew once, within `deadline_s`, trying more than one member; returns the TTL granted, in seconds.

        The holder counts the TTL from the moment it *called* this, never from the answer. Raises LeaseNotFound,
        StoreUnavailable.
        """
        ...

    async def revoke_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys; no error when it is gone already. Raises StoreUnavailable."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`. Raises StoreUnavailable; a revision already compacted is no error."""
        ...

    async def close(self) -> None:
        """Let go of connections. Watches end."""
        ...
