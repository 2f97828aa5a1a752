"""The run epoch beside a disk: who may run the guest. Blocking: for worker threads only.

Two hosts may claim at the same moment, and a crash may come at any. So the file holds two records; the higher one
counts and the other one is overwritten, under an exclusive lock on the file itself, and read back before the lock is
let go.
A crash in mid-write spoils only the record that did not count. The lock is on the file that holds the data because
taking a lock is what makes a network file system drop what it has cached of that file.
"""

import os
from pathlib import Path

from leeward.errors import StaleRunEpoch, StorageError
from leeward_agent.storage.files import link_new, locked
from leeward_agent.storage.port import RunEpochRecord
from leeward_agent.storage.records import decode_record, empty_record, encode_record, is_empty_record

RUN_EPOCH = "run-epoch"
_RECORD_BYTES = 512  # One disk sector, which a disk writes whole or not at all.
_LOCK_BOUND_S = 5.0


def read_run_epoch(instance: Path) -> RunEpochRecord | None:
    """What counts now, or None. Raises StorageError when the file cannot be understood."""
    try:
        with locked(instance / RUN_EPOCH, exclusive=False, bound_s=_LOCK_BOUND_S, create=False) as fd:
            return _current(_read_halves(fd), instance)
    except FileNotFoundError:
        return None


def write_run_epoch(instance: Path, record: RunEpochRecord, *, token: str) -> None:
    """Claim the right to run. Raises StaleRunEpoch, and StorageError when it is not known to have been written."""
    path = instance / RUN_EPOCH
    if not path.exists():
        link_new(path, empty_record(_RECORD_BYTES) * 2, token=token)
    with locked(path, exclusive=True, bound_s=_LOCK_BOUND_S, create=False) as fd:
        halves = _read_halves(fd)
        present = _current(halves, instance)
        if present == record:
            return
        check_supersedes(present, record, uid=instance.name)
        spare = 1 if present is not None and _decode(halves[0]) == present else 0
        data = encode_record({"epoch": record.epoch, "node": record.node}, size_bytes=_RECORD_BYTES)
        if os.pwrite(fd, data, spare * _RECORD_BYTES) != _RECORD_BYTES:
            raise StorageError(f"run epoch of {instance.name}: the record was written in part only")
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if _current(_read_halves(fd), instance) != record:
            raise StorageError(f"run epoch of {instance.name}: it does not read back as it was written")


def check_supersedes(present: RunEpochRecord | None, wanted: RunEpochRecord, *, uid: str) -> None:
    """Raises StaleRunEpoch unless `wanted` may follow `present`: a higher epoch, or the very same record."""
    if present is None or wanted.epoch > present.epoch or wanted == present:
        return
    raise StaleRunEpoch(
        f"guest {uid}: run epoch {wanted.epoch} of {wanted.node} cannot be claimed, "
        f"since epoch {present.epoch} of {present.node} is recorded beside its disk",
        metadata={"uid": uid, "epoch": str(present.epoch), "node": present.node},
    )


def _read_halves(fd: int) -> tuple[bytes, bytes]:
    data = os.pread(fd, 2 * _RECORD_BYTES, 0)
    return data[:_RECORD_BYTES], data[_RECORD_BYTES:]


def _current(halves: tuple[bytes, bytes], instance: Path) -> RunEpochRecord | None:
    records = [record for half in halves if (record := _decode(half)) is not None]
    if records:
        return max(records, key=lambda record: record.epoch)
    # One half that is neither empty nor whole is the very first write, torn, and never acknowledged. Two are damage,
    # which must not pass for "nobody has claimed this guest".
    if any(is_empty_record(half) for half in halves):
        return None
    raise StorageError(f"the run epoch of {instance.name} is damaged")


def _decode(half: bytes) -> RunEpochRecord | None:
    content = decode_record(half)
    if content is None:
        return None
    epoch, node = content.get("epoch"), content.get("node")
    if isinstance(epoch, int) and isinstance(node, str):
        return RunEpochRecord(epoch=epoch, node=node)
    return None
