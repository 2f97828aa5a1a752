"""What an image's first bytes say, without opening it with any tool. Pure.

QEMU acts on what a header names (a backing file, a data file), so a header from outside is judged here, before QEMU or
qemu-img sees the file. Layout of qcow2: QEMU's `docs/interop/qcow2.txt`. Magic numbers of the other formats: what
QEMU's own format probing looks at.
"""

import struct
from collections.abc import Iterator

from leeward.agent.types import DiskFormat
from leeward.errors import ImageRefused

HEAD_BYTES = 65_536  # As much of the file's beginning as `check_image` wants to see.
MAX_VIRTUAL_SIZE_BYTES = 64 * 1024**4
SECTOR_BYTES = 512

_QCOW_MAGIC = b"QFI\xfb"
_QCOW2_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_V3 = struct.Struct(">QQQII")
_V2_HEADER_BYTES = _QCOW2_V2.size
_V3_HEADER_BYTES = _QCOW2_V2.size + _QCOW2_V3.size

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION_TYPE, _EXTENDED_L2 = (1 << bit for bit in range(5))
_ACCEPTED_FEATURES = _COMPRESSION_TYPE | _EXTENDED_L2

_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_ENCRYPTION = 0x0537BE77

_MAX_L1_BYTES = 32 * 1024**2
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024**2
_MAX_SNAPSHOTS = 65_536

_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, _QCOW_MAGIC, "qcow or qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
)


def check_image(*, head: bytes, declared: DiskFormat, size_bytes: int) -> int:
    """The image's virtual size in bytes. Raises ImageRefused with the reason.

    `head` is the file's first HEAD_BYTES, or all of it when it is smaller; `size_bytes` is the whole file's size.
    """
    if len(head) < min(size_bytes, HEAD_BYTES):
        raise ImageRefused(f"only {len(head)} of the image's first {min(size_bytes, HEAD_BYTES)} bytes are there")
    match declared:
        case DiskFormat.RAW:
            return _check_raw(head, size_bytes)
        case DiskFormat.QCOW2:
            return _check_qcow2(head, size_bytes)


def container_format(head: bytes) -> str | None:
    """The disk image format that QEMU would see in these bytes, or None when they can only be raw."""
    for offset, magic, name in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return "VMDK" if _is_vmdk_descriptor(head) else None


def _is_vmdk_descriptor(head: bytes) -> bool:
    # A VMDK can be a text file that names other files. QEMU takes any text for one whose first line that is neither
    # empty nor a comment begins with "version=".
    for line in head.split(b"\n"):
        text = line.strip(b" \r\t")
        if text and not text.startswith(b"#"):
            return text.startswith(b"version=")
    return False


def _check_raw(head: bytes, size_bytes: int) -> int:
    found = container_format(head)
    if found is not None:
        raise ImageRefused(f"declared as raw, but the bytes are those of a {found} image")
    if size_bytes < SECTOR_BYTES or size_bytes % SECTOR_BYTES:
        raise ImageRefused(f"a raw image is a multiple of {SECTOR_BYTES} bytes, not empty; this has {size_bytes}")
    return _checked_virtual_size(size_bytes)


def _check_qcow2(head: bytes, size_bytes: int) -> int:
    if head[:4] != _QCOW_MAGIC:
        found = container_format(head)
        what = f"this is a {found} image" if found else "it has no qcow2 header"
        raise ImageRefused(f"declared as qcow2, but {what}")
    if len(head) < _V2_HEADER_BYTES:
        raise ImageRefused(f"the qcow2 header is cut off after {len(head)} bytes")
    (
        _, version, backing_offset, backing_size, cluster_bits, virtual_size, crypt_method,
        l1_entries, l1_offset, refcount_offset, refcount_clusters, snapshots, _,
    ) = _QCOW2_V2.unpack_from(head)  # fmt: skip
    if version not in (2, 3):
        raise ImageRefused(f"qcow version {version} is not accepted; 2 and 3 are")
    if backing_offset or backing_size:
        raise ImageRefused("the image has a backing file; flatten it first (qemu-img convert)")
    if crypt_method:
        raise ImageRefused(f"the image is encrypted (method {crypt_method}); only unencrypted images are accepted")
    if not 9 <= cluster_bits <= 21:
        raise ImageRefused(f"cluster_bits is {cluster_bits}; 9 to 21 are possible")
    header_bytes = _V2_HEADER_BYTES if version == 2 else _check_v3_fields(head)
    _check_extensions(head, header_bytes, 1 << cluster_bits)
    cluster = 1 << cluster_bits
    _check_table("L1 table", l1_offset, l1_entries * 8, _MAX_L1_BYTES, cluster, size_bytes)
    refcount_bytes = refcount_clusters * cluster
    _check_table("refcount table", refcount_offset, refcount_bytes, _MAX_REFCOUNT_TABLE_BYTES, cluster, size_bytes)
    if snapshots > _MAX_SNAPSHOTS:
        raise ImageRefused(f"the image claims {snapshots} internal snapshots; at most {_MAX_SNAPSHOTS} are possible")
    return _checked_virtual_size(virtual_size)


def _check_v3_fields(head: bytes) -> int:
    """The length of a version 3 header, after its feature bits were judged."""
    if len(head) < _V3_HEADER_BYTES:
        raise ImageRefused(f"the qcow2 header is cut off after {len(head)} bytes")
    header_bytes: int
    incompatible, _, _, refcount_order, header_bytes = _QCOW2_V3.unpack_from(head, _V2_HEADER_BYTES)
    if incompatible & _DATA_FILE:
        raise ImageRefused("the image keeps its data in another file; convert it first (qemu-img convert)")
    if incompatible & _CORRUPT:
        raise ImageRefused("the image is marked corrupt; repair it first (qemu-img check -r all)")
    if incompatible & _DIRTY:
        raise ImageRefused("the image was not closed properly; repair it first (qemu-img check -r all)")
    if unknown := incompatible & ~_ACCEPTED_FEATURES:
        raise ImageRefused(f"the image uses unknown incompatible features (bits {unknown:#x})")
    if refcount_order > 6:
        raise ImageRefused(f"refcount_order is {refcount_order}; 0 to 6 are possible")
    if header_bytes < _V3_HEADER_BYTES or header_bytes % 8 or header_bytes > len(head):
        raise ImageRefused(f"the qcow2 header claims to be {header_bytes} bytes long")
    return header_bytes


def _check_extensions(head: bytes, start: int, cluster_bytes: int) -> None:
    for kind in _extension_kinds(head[:cluster_bytes], start):
        if kind == _EXTENSION_DATA_FILE:
            raise ImageRefused("the image's header names a data file; convert it first (qemu-img convert)")
        if kind == _EXTENSION_ENCRYPTION:
            raise ImageRefused("the image has an encryption header; only unencrypted images are accepted")


def _extension_kinds(area: bytes, start: int) -> Iterator[int]:
    offset = start
    while offset + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, offset)
        if kind == _EXTENSION_END:
            return
        yield kind
        offset += 8 + (length + 7) // 8 * 8
    if offset != len(area):
        raise ImageRefused("the qcow2 header extensions do not end within the first cluster or 64 KiB")


def _check_table(name: str, offset: int, length: int, limit: int, cluster_bytes: int, size_bytes: int) -> None:
    if length > limit:
        raise ImageRefused(f"the {name} claims {length} bytes; at most {limit} are possible")
    if offset % cluster_bytes or offset + length > size_bytes:
        raise ImageRefused(f"the {name} ({length} bytes at {offset}) is not within the file of {size_bytes} bytes")


def _checked_virtual_size(virtual_size_bytes: int) -> int:
    if not 0 < virtual_size_bytes <= MAX_VIRTUAL_SIZE_BYTES:
        raise ImageRefused(f"a virtual size of {virtual_size_bytes} bytes; 1 to {MAX_VIRTUAL_SIZE_BYTES} are accepted")
    return virtual_size_bytes
