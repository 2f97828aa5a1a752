"""How messages of a watch become batches."""

import pytest

from leeward.errors import Compacted, PermissionDenied, StoreUnavailable
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd.cursor import Cursor


def changes(*revisions: int, fragment: bool = False, header: int = 0) -> pb.WatchResponse:
    events = [
        pb.Event(kv=pb.KeyValue(key=f"{revision}/{n}".encode(), mod_revision=revision))
        for n, revision in enumerate(revisions)
    ]
    return pb.WatchResponse(header=pb.ResponseHeader(revision=header), events=events, fragment=fragment)


def progress(revision: int, *, requested: bool) -> pb.WatchResponse:
    return pb.WatchResponse(header=pb.ResponseHeader(revision=revision), watch_id=-1 if requested else 0)


def taken(cursor: Cursor, message: pb.WatchResponse) -> tuple[list[int], int] | None:
    batch = cursor.take(message)
    return None if batch is None else ([change.mod_revision for change in batch.changes], batch.revision)


def test_fragments_are_put_together_to_whole_revisions() -> None:
    cursor = Cursor(5)
    assert taken(cursor, changes(5, 6, 6, fragment=True)) == ([5], 5)
    assert taken(cursor, changes(6, fragment=True)) is None
    assert taken(cursor, progress(9, requested=True)) is None
    assert taken(cursor, changes(6, 7, 8)) == ([6, 6, 6, 6, 7, 8], 8)


def test_a_connection_lost_between_fragments_gives_nothing_out_twice() -> None:
    cursor = Cursor(5)
    assert taken(cursor, changes(5, 6, fragment=True)) == ([5], 5)
    cursor.restart()
    assert cursor.start_revision == 5
    assert taken(cursor, changes(5, 6, 6, 7)) == ([6, 6, 7], 7)
    assert taken(cursor, changes(6, 7)) is None


def test_what_a_member_merely_reports_moves_neither_the_bookmark_nor_the_start() -> None:
    cursor = Cursor(5)
    assert taken(cursor, progress(100, requested=True)) == ([], 4)
    assert taken(cursor, changes(7, header=100)) == ([7], 7)
    assert cursor.start_revision == 7


def test_periodic_progress_moves_the_bookmark_but_not_the_start() -> None:
    cursor = Cursor(5)
    assert taken(cursor, progress(50, requested=False)) == ([], 50)
    assert taken(cursor, progress(40, requested=False)) == ([], 50)
    assert cursor.start_revision == 4
    assert taken(cursor, changes(51)) == ([51], 51)


def test_a_watch_that_ended_says_why() -> None:
    with pytest.raises(Compacted) as compacted:
        Cursor(5).take(pb.WatchResponse(created=True, canceled=True, compact_revision=12))
    assert compacted.value.revision == 12
    with pytest.raises(PermissionDenied):
        Cursor(5).take(pb.WatchResponse(created=True, canceled=True, cancel_reason="etcdserver: permission denied"))
    with pytest.raises(StoreUnavailable):
        Cursor(5).take(pb.WatchResponse(canceled=True))
