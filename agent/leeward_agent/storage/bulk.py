"""Work on large files in parts, so that each call has a bound. Blocking: for worker threads only."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

PART_BYTES = 64 * 1024**2
_BLOCK_BYTES = 1024**2
_HOLE_BYTES = 65_536  # Zeros in blocks of this size become holes: qcow2's own clusters are no smaller by default.
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file of the same file system.


class Digest(Protocol):
    """Of the standard library's `hashlib`, what is needed here."""

    def update(self, data: bytes, /) -> None:
        """Take more."""
        ...

    def hexdigest(self) -> str:
        """The digest of all that was taken."""
        ...


def allocated_bytes(path: Path) -> int:
    """How much room a file takes; holes take none."""
    return path.stat().st_blocks * 512  # Always in these units (stat(2)).


def begin_copy(source: Path, target: Path) -> bool:
    """Make the new file `target` a copy that shares its blocks with `source`; else leave it empty and answer False."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    read_fd = os.open(source, os.O_RDONLY | flags)
    try:
        write_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o644)
        try:
            fcntl.ioctl(write_fd, _FICLONE, read_fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
                raise
            return False
        finally:
            os.close(write_fd)
    finally:
        os.close(read_fd)
    return True


def copy_part(source: Path, target: Path, offset: int) -> int | None:
    """Copy the next part from `offset`, without its holes, durably. Answers where to go on; None at the end."""
    read_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    write_fd = -1
    try:
        write_fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        size_bytes = os.fstat(read_fd).st_size
        os.ftruncate(write_fd, size_bytes)
        start = _next_data(read_fd, offset)
        end = min(size_bytes, start + PART_BYTES)
        for position in range(start, end, _BLOCK_BYTES):
            data = os.pread(read_fd, min(_BLOCK_BYTES, end - position), position)
            _write_sparse(write_fd, data, position)
        os.fdatasync(write_fd)
        return end if end < size_bytes else None
    finally:
        os.close(read_fd)
        if write_fd >= 0:
            os.close(write_fd)


def write_part(path: Path, data: bytes, offset: int) -> None:
    """Write what has come of a file at its place; what is all zeros becomes a hole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, offset + len(data))
        _write_sparse(fd, data, offset)
        if offset // PART_BYTES != (offset + len(data)) // PART_BYTES:
            os.fdatasync(fd)  # Now and then, so that the last one is short.
    finally:
        os.close(fd)


def digest_part(path: Path, digest: Digest, offset: int, *, end: int) -> int:
    """Take the next part of a file up to `end` into `digest`; answers where to go on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        stop = min(end, offset + PART_BYTES)
        while offset < stop:
            data = os.pread(fd, min(_BLOCK_BYTES, stop - offset), offset)
            if not data:
                return end
            digest.update(data)
            offset += len(data)
        return offset
    finally:
        os.close(fd)


def _next_data(fd: int, offset: int) -> int:
    """Where the next byte is that was ever written; the file's end when there is none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size


def _write_sparse(fd: int, data: bytes, offset: int) -> None:
    for start in range(0, len(data), _HOLE_BYTES):
        block = memoryview(data)[start : start + _HOLE_BYTES]
        if block.tobytes().strip(b"\0"):
            position = offset + start
            while block:
                written = os.pwrite(fd, block, position)
                block, position = block[written:], position + written
