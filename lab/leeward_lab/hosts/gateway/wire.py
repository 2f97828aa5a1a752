"""The part of Linux's FUSE protocol that the gateway speaks (include/uapi/linux/fuse.h, version 7.31).

Everything is little-endian here because both ends are on one machine that QEMU's x86 guests run on.
"""

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_WRITE_BYTES = 128 << 10
REQUEST_BYTES = MAX_WRITE_BYTES + 4096
ROOT_NODE = 1

_IN_HEADER = struct.Struct("<IIQQIIII")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
# FUSE_ASYNC_READ, POSIX_LOCKS, BIG_WRITES, FLOCK_LOCKS, ASYNC_DIO, PARALLEL_DIROPS
_FEATURES = 1 << 0 | 1 << 1 | 1 << 5 | 1 << 10 | 1 << 15 | 1 << 18
_DIRECT_IO = 1


class Opcode(IntEnum):
    """The requests the gateway answers; the kernel is told ENOSYS for all others and stops asking."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46


class Set(IntEnum):
    """Which attributes a SETATTR changes."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what is asked, of which node, and the arguments not yet taken apart."""

    opcode: int
    unique: int
    node: int
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "Request":
        _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(raw)
        return cls(opcode=opcode, unique=unique, node=node, body=raw[_IN_HEADER.size :])

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """The fixed arguments at the start of the body."""
        return struct.unpack_from("<" + layout, self.body)

    def names(self, skip: int = 0) -> list[bytes]:
        """The zero-terminated names after `skip` bytes of fixed arguments."""
        return self.body[skip:].split(b"\0")[:-1]


def reply(unique: int, payload: bytes = b"", *, error: int = 0) -> bytes:
    """An answer; `error` is a positive errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(payload), -error, unique) + payload


def init_answer() -> bytes:
    """Version 7.31; no read-ahead, 16 requests in the background, `MAX_WRITE_BYTES`, times in nanoseconds."""
    return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, _FEATURES, 16, 12, MAX_WRITE_BYTES, 1, 0, 0, 0, *([0] * 7))


def attributes_answer(status: os.stat_result) -> bytes:
    """Attributes that the kernel may not keep, so that another host's change is seen."""
    return struct.pack("<QII", 0, 0, 0) + _attributes(status)


def entry_answer(node: int, status: os.stat_result) -> bytes:
    """A directory entry that the kernel may not keep."""
    return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + _attributes(status)


def open_answer(handle: int) -> bytes:
    """An open file without a page cache of its own: the only one is the machine's."""
    return struct.pack("<QII", handle, _DIRECT_IO, 0)


def statistics_answer(status: os.statvfs_result) -> bytes:
    """Space in the file system."""
    return struct.pack(
        "<QQQQQIIII24x", status.f_blocks, status.f_bfree, status.f_bavail, status.f_files, status.f_ffree,
        status.f_bsize, status.f_namemax, status.f_frsize, 0,
    )  # fmt: skip


def directory_entry(inode: int, offset: int, kind: int, name: bytes) -> bytes:
    """One entry of a READDIR answer; `offset` is where the next one continues."""
    entry = struct.pack("<QQII", inode, offset, len(name), kind) + name
    return entry + b"\0" * (-len(entry) % 8)


def _attributes(status: os.stat_result) -> bytes:
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    seconds = (time // 10**9 for time in times)
    nanoseconds = (time % 10**9 for time in times)
    return _ATTRIBUTES.pack(
        status.st_ino, status.st_size, status.st_blocks, *seconds, *nanoseconds, status.st_mode, status.st_nlink,
        status.st_uid, status.st_gid, status.st_rdev, status.st_blksize, 0,
    )  # fmt: skip
