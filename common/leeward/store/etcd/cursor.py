"""How far a watch has got."""

from leeward.errors import Compacted, LeewardError, PermissionDenied, StoreUnavailable
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd import convert
from leeward.store.port import Change, WatchBatch


class Cursor:
    """Turns the messages of one or more streams into one sequence of batches, in order, none missed, none twice.

    Two revisions are kept apart. A new stream starts from the last *change* given out, never from a revision that a
    member merely reported: etcd before 3.4.25 and 3.5.8 answers a progress request with a revision that it has not
    sent all changes of (etcd issue 15220). A bookmark shows the larger of the last change and the last *periodic*
    progress report, which etcd puts in line with the changes; the answer to a request only shows that it is alive.
    """

    def __init__(self, from_revision: int) -> None:
        self._given_out = from_revision - 1
        self._seen = self._given_out
        self._held: list[Change] = []

    @property
    def start_revision(self) -> int:
        """What to ask a new stream for: one revision more than is needed.

        A compaction at the very revision of a deletion removes that deletion (etcd issue 18089), and a watch from
        there would miss it in silence. Asked from one before, etcd says that history is gone. What comes twice is
        dropped.
        """
        return max(self._given_out, 1)

    def restart(self) -> None:
        """A new stream begins: it will repeat what was not given out."""
        self._held.clear()

    def take(self, message: pb.WatchResponse) -> WatchBatch | None:
        """The batch that a message completes, if it does.

        Raises Compacted, PermissionDenied, or StoreUnavailable when the member ended the watch for another reason.
        """
        if message.canceled:
            raise _ended(message)
        if message.created:
            return None
        if not message.events:
            return None if self._held else self._bookmark(message)
        changes = self._held + [convert.change(e) for e in message.events if e.kv.mod_revision > self._given_out]
        self._held = []
        if message.fragment and changes:
            # More of the last revision may follow; all before it is whole.
            last = changes[-1].mod_revision
            self._held = [change for change in changes if change.mod_revision == last]
            changes = changes[: -len(self._held)]
        if not changes:
            return None
        self._given_out = changes[-1].mod_revision
        self._seen = max(self._seen, self._given_out)
        return WatchBatch(tuple(changes), self._seen)

    def _bookmark(self, message: pb.WatchResponse) -> WatchBatch:
        if message.watch_id >= 0:
            self._seen = max(self._seen, message.header.revision)
        return WatchBatch((), self._seen)


def _ended(message: pb.WatchResponse) -> LeewardError:
    if message.compact_revision:
        return Compacted(message.compact_revision)
    if "permission denied" in message.cancel_reason:
        return PermissionDenied(f"watch: {message.cancel_reason}")
    return StoreUnavailable(f"the member ended the watch: {message.cancel_reason or 'no reason given'}")
