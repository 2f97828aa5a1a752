"""Watches on the in-memory store: cursors over its one list of changes."""

import asyncio

from leeward.errors import Compacted
from leeward.store.memory.keys import VersionedKeys
from leeward.store.port import WatchBatch


class MemoryWatch:
    """An iterator over a prefix's changes. It keeps a position and no changes of its own."""

    def __init__(self, keys: VersionedKeys, prefix: str, *, from_revision: int) -> None:
        self._keys = keys
        self._prefix = prefix
        self._from_revision = from_revision
        self._position = keys.position_of(from_revision)
        # As with etcd's adapter, a watch starts one revision early to be sure that nothing is missing.
        self._lost = max(from_revision - 1, 1) < keys.compacted
        self._bookmark_due = False
        self._stopped = False
        self._wake = asyncio.Event()

    def __aiter__(self) -> "MemoryWatch":
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._stopped:
            if self._lost:
                self._stopped = True
                raise Compacted(self._keys.compacted)
            if (batch := self._take()) is not None:
                return batch
            self._wake.clear()
            await self._wake.wait()
        raise StopAsyncIteration

    def notify(self, keys: list[str]) -> None:
        """These keys have changed."""
        if any(key.startswith(self._prefix) for key in keys):
            self._wake.set()

    def bookmark(self) -> None:
        """Show how far it has got, when nothing else does."""
        self._bookmark_due = True
        self._wake.set()

    def before_compaction(self, revision: int) -> None:
        """Changes up to `revision` are about to go; a reader that has not seen all of its own is lost."""
        if self._lost:
            return
        for change in self._keys.changes_since(self._position):
            if change.mod_revision > revision:
                return
            if change.key.startswith(self._prefix):
                self._lost = True
                self._wake.set()
                return
            self._position += 1

    def stop(self) -> None:
        """End the iteration."""
        self._stopped = True
        self._wake.set()

    def _take(self) -> WatchBatch | None:
        changes = tuple(
            change
            for change in self._keys.changes_since(self._position)
            if change.mod_revision >= self._from_revision and change.key.startswith(self._prefix)
        )
        self._position = self._keys.end
        if changes:
            return WatchBatch(changes, changes[-1].mod_revision)
        if self._bookmark_due:
            self._bookmark_due = False
            return WatchBatch((), max(self._keys.revision, self._from_revision - 1))
        return None
