"""Watches: what is there, then every change in order, from the store itself."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from leeward.errors import InvalidArgument
from leeward.store.port import Change, KeyValue, WatchBatch
from leeward_controller.records import Kind, Records, Stored
from leeward_controller.services.drain import Drain

T = TypeVar("T")

_SNAPSHOT_PAGE = 500


class WatchEventType(StrEnum):
    """What a message of a watch tells."""

    ADDED = "ADDED"  # It is there: it was created, or was found when the watch began.
    MODIFIED = "MODIFIED"  # It has changed.
    REMOVED = "REMOVED"  # It is gone.
    BOOKMARK = "BOOKMARK"  # Nothing new; everything up to the revision has been told.


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[T]):
    """One message. `revision` is the last one told whole, from which to resume; 0 within the first snapshot."""

    type: WatchEventType
    key: str
    record: Stored[T] | None
    revision: int


class Watches:
    """Makes watches of any kind of record."""

    def __init__(self, *, records: Records, drain: Drain) -> None:
        self._records = records
        self._drain = drain

    async def watch(self, kind: Kind[T], *, prefix: str, revision: int) -> AsyncGenerator[WatchEvent[T], None]:
        """Everything below `prefix` now (`revision` 0) or nothing, then each change after `revision`, for ever.

        Raises InvalidArgument (`revision` cannot be one), Compacted, StoreUnavailable, Draining with the revision to
        resume from.
        """
        if revision:
            await self._check_reached(kind, revision)
        else:
            async for event in self._snapshot(kind, prefix):
                revision = max(revision, event.revision)
                yield event
        told = revision
        async with (
            self._records.store.watch(prefix, from_revision=revision + 1) as batches,
            aclosing(self._drain.until(batches, revision=lambda: told)) as guarded,
        ):
            async for batch in guarded:
                for event in self._events(kind, batch, told):
                    yield event
                told = batch.revision

    async def _check_reached(self, kind: Kind[T], revision: int) -> None:
        if revision < 0:
            raise InvalidArgument.field("revision", f"{revision} is negative; 0 begins with what is there")
        now = (await self._records.store.list(kind.prefix, limit=1, keys_only=True)).revision
        if revision > now:
            raise InvalidArgument.field("revision", f"{revision} is yet to come; the store is at revision {now}")

    async def _snapshot(self, kind: Kind[T], prefix: str) -> AsyncIterator[WatchEvent[T]]:
        page = await self._records.list(kind, prefix=prefix, limit=_SNAPSHOT_PAGE)
        revision = page.revision
        while True:
            for record in page.items:
                yield WatchEvent(WatchEventType.ADDED, record.key, record, 0)
            if not page.more:
                break
            page = await self._records.list(
                kind, prefix=prefix, limit=_SNAPSHOT_PAGE, start_after=page.items[-1].key, revision=revision
            )
        yield WatchEvent(WatchEventType.BOOKMARK, "", None, revision)

    def _events(self, kind: Kind[T], batch: WatchBatch, told: int) -> list[WatchEvent[T]]:
        if not batch.changes:
            return [WatchEvent(WatchEventType.BOOKMARK, "", None, batch.revision)]
        events: list[WatchEvent[T]] = []
        for change, following in zip(batch.changes, [*batch.changes[1:], None], strict=True):
            # A revision is told whole only with the last of its changes.
            if following is None or following.mod_revision != change.mod_revision:
                told = change.mod_revision
            events.append(self._event(kind, change, told))
        return events

    def _event(self, kind: Kind[T], change: Change, told: int) -> WatchEvent[T]:
        if change.value is None:
            return WatchEvent(WatchEventType.REMOVED, change.key, None, told)
        found = KeyValue(change.key, change.value, change.create_revision, change.mod_revision, change.lease_id)
        added = change.create_revision == change.mod_revision
        type_ = WatchEventType.ADDED if added else WatchEventType.MODIFIED
        return WatchEvent(type_, change.key, self._records.decode(kind, found), told)
