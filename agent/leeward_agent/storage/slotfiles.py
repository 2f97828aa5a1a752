"""Storage heartbeats as files: one block a node, overwritten in place. Blocking: for worker threads only."""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from leeward.errors import StorageError
from leeward_agent.storage.files import sync_directory
from leeward_agent.storage.names import is_node
from leeward_agent.storage.port import Slot
from leeward_agent.storage.records import decode_record, encode_record

SLOT_BYTES = 4096
_ATTEMPTS = 3


def write_slot(folder: Path, slot: Slot) -> None:
    """Overwrite the node's block and wait until it is on stable storage."""
    data = _encode(slot)
    path = folder / slot.node
    is_new = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.pwrite(fd, data, 0) != len(data):
            raise StorageError(f"storage heartbeat of {slot.node}: the block was written in part only")
    finally:
        os.close(fd)
    if is_new:
        sync_directory(folder)


def read_slots(folder: Path) -> tuple[Slot, ...]:
    """Every node's block, in order of node, read from storage. One that is not whole is left out."""
    slots = (_read(folder / name) for name in sorted(os.listdir(folder)) if is_node(name))
    return tuple(slot for slot in slots if slot is not None)


def _read(path: Path) -> Slot | None:
    # A block that is being overwritten may be seen torn; it is whole a moment later.
    for _ in range(_ATTEMPTS):
        try:
            slot = _decode(read_block(path))
        except FileNotFoundError:
            return None
        if slot is not None and slot.node == path.name:
            return slot
    return None


def read_block(path: Path) -> bytes:
    """The block as it is on storage. Direct I/O passes by this host's cache, which would show its own past."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError:
        # Not every file system knows direct I/O (older tmpfs, some FUSE ones).
        return _read_uncached(path)
    try:
        with mmap.mmap(-1, SLOT_BYTES) as buffer:  # Anonymous memory is page-aligned, as direct I/O wants it.
            length = os.preadv(fd, [buffer], 0)
            return buffer[:length]
    finally:
        os.close(fd)


def _read_uncached(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, SLOT_BYTES, 0)
    finally:
        os.close(fd)


def _encode(slot: Slot) -> bytes:
    """The slot as one block, with as many of its guests as fit."""
    kept = len(slot.guests)
    while True:
        try:
            return encode_record(_content(slot, slot.guests[:kept]), size_bytes=SLOT_BYTES)
        except ValueError:
            if not kept:
                raise
            kept -= 1 + kept // 16


def _content(slot: Slot, guests: Sequence[str]) -> dict[str, object]:
    return {
        "node": slot.node,
        "boot_id": slot.boot_id,
        "agent_id": slot.agent_id,
        "sequence": slot.sequence,
        "acknowledged": slot.acknowledged,
        "guests": list(guests),
    }


def _decode(block: bytes) -> Slot | None:
    content = decode_record(block)
    if content is None:
        return None
    node, boot_id, agent_id = content.get("node"), content.get("boot_id"), content.get("agent_id")
    sequence, guests = content.get("sequence"), content.get("guests")
    if not isinstance(node, str) or not isinstance(boot_id, str) or not isinstance(agent_id, str):
        return None
    if not isinstance(sequence, int) or not isinstance(guests, list):
        return None
    return Slot(
        node=node,
        boot_id=boot_id,
        agent_id=agent_id,
        sequence=sequence,
        guests=tuple(map(str, guests)),
        acknowledged=str(content.get("acknowledged", "")),
    )
