"""Poison pills as files: one block for each node, overwritten in place. Blocking: for worker threads only."""

import os
from pathlib import Path

from leeward.errors import StorageError
from leeward_agent.storage.files import sync_directory
from leeward_agent.storage.port import Pill
from leeward_agent.storage.records import decode_record, empty_record, encode_record
from leeward_agent.storage.slotfiles import SLOT_BYTES, read_block


def write_pill(folder: Path, pill: Pill) -> None:
    """Leave it in the place of any that is there, and wait until it is on stable storage."""
    content = {"node": pill.node, "boot_id": pill.boot_id, "pill_id": pill.pill_id}
    _overwrite(folder / pill.node, encode_record(content, size_bytes=SLOT_BYTES))


def read_pill(folder: Path, node: str) -> Pill | None:
    """The node's, read from storage. Raises StorageError when there is something that cannot be understood."""
    try:
        block = read_block(folder / node)
    except FileNotFoundError:
        return None
    if not block.strip():
        return None
    content = decode_record(block)
    if content is None:
        raise StorageError(f"the poison pill for {node} cannot be understood; it may be being written")
    return Pill(node=node, boot_id=str(content.get("boot_id")), pill_id=str(content.get("pill_id")))


def withdraw_pill(folder: Path, node: str, *, pill_id: str) -> None:
    """Take it away if it is this one. Overwritten, not unlinked: other hosts may hold the name of a file in a cache."""
    found = read_pill(folder, node)
    if found is not None and found.pill_id == pill_id:
        _overwrite(folder / node, empty_record(SLOT_BYTES))


def _overwrite(path: Path, block: bytes) -> None:
    path.parent.mkdir(mode=0o711, exist_ok=True)
    is_new = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.pwrite(fd, block, 0) != len(block):
            raise StorageError(f"poison pill for {path.name}: the block was written in part only")
    finally:
        os.close(fd)
    if is_new:
        sync_directory(path.parent)
