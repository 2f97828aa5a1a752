"""What the header of a guest's own qcow2 disk says. Blocking where it takes a path: for worker threads only.

A guest writes clusters and never the header, so a disk that Leeward made says the truth about what it is based on. One
that came from another pool is judged here before QEMU sees it. Layout: QEMU's `docs/interop/qcow2.txt`.
"""

import os
import struct
from pathlib import Path

from leeward.errors import DataLoss
from leeward_agent.storage.image_format import HEAD_BYTES

_MAGIC = b"QFI\xfb"
_FIELDS = struct.Struct(">4sIQIIQ")  # Magic, version, backing file's offset and length, cluster bits, virtual size.
_LONGEST_BACKING = 1023
_DATA_FILE_BIT = 1 << 2
_FEATURES = struct.Struct(">Q")
_FEATURES_OFFSET = 72


def backing_file(path: Path) -> str:
    """The name of the file that a disk is based on, as its header has it; empty when it stands alone.

    Raises DataLoss when it is no qcow2 that Leeward makes.
    """
    head = _head(path)
    _, version, offset, length, _, _ = _FIELDS.unpack_from(head)
    features = _FEATURES.unpack_from(head, _FEATURES_OFFSET)[0] if version >= 3 else 0
    if features & _DATA_FILE_BIT or length > _LONGEST_BACKING or offset + length > len(head):
        raise DataLoss(f"{path.name} of guest {path.parent.name} has a header that Leeward does not make")
    return head[offset : offset + length].decode(errors="replace") if offset else ""


def virtual_size_bytes(path: Path) -> int:
    """How large the guest sees the disk. Raises DataLoss."""
    size_bytes: int = _FIELDS.unpack_from(_head(path))[5]
    return size_bytes


def _head(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        head = os.pread(fd, HEAD_BYTES, 0)
    finally:
        os.close(fd)
    if not head.startswith(_MAGIC) or len(head) < _FEATURES_OFFSET + _FEATURES.size:
        raise DataLoss(f"{path.name} of guest {path.parent.name} is no qcow2 disk")
    return head
