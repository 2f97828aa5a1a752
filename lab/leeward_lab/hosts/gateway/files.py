"""What the gateway does for each request: the same call on the directory behind it."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from leeward_lab.hosts.gateway import wire
from leeward_lab.hosts.gateway.nodes import Nodes
from leeward_lab.hosts.gateway.wire import Opcode, Request, Set

# Locks of an open file (fcntl(2)); Python has no names for them. Every file opened through the gateway has a descriptor
# of its own here, so QEMU's image locks hold between hosts as they would on a network file system.
_OFD_GETLK, _OFD_SETLK = 36, 37
_FLOCK = struct.Struct("=hh4xqqi4x")
_LOCK_END = (1 << 63) - 1
_LOCK_POLL_S = 0.02
# The gateway's own buffers are not aligned; creation is done before opening.
_NOT_PASSED = os.O_DIRECT | os.O_CREAT | os.O_EXCL | os.O_NOCTTY

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Files:
    """Answers requests about one directory tree. Each method returns a payload or raises OSError."""

    def __init__(self, root: Path) -> None:
        self._nodes = Nodes(root)
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._next_listing = 1
        self._interrupted: set[int] = set()
        self._lock = threading.Lock()
        self.handlers: dict[int, Callable[[Request], bytes | None]] = {
            Opcode.INIT: lambda _: wire.init_answer(), Opcode.DESTROY: lambda _: b"",
            Opcode.LOOKUP: self._look_up, Opcode.FORGET: self._forget, Opcode.BATCH_FORGET: self._forget_many,
            Opcode.GETATTR: self._get_attributes, Opcode.SETATTR: self._set_attributes,
            Opcode.READLINK: self._read_link, Opcode.SYMLINK: self._symlink, Opcode.MKNOD: self._make_node,
            Opcode.MKDIR: self._make_directory, Opcode.UNLINK: self._unlink, Opcode.RMDIR: self._remove_directory,
            Opcode.RENAME: self._rename, Opcode.RENAME2: self._rename_with_flags, Opcode.LINK: self._link,
            Opcode.OPEN: self._open, Opcode.CREATE: self._create, Opcode.READ: self._read, Opcode.WRITE: self._write,
            Opcode.RELEASE: self._release, Opcode.FSYNC: self._sync, Opcode.FSYNCDIR: self._sync_directory,
            Opcode.STATFS: self._statistics, Opcode.OPENDIR: self._open_directory,
            Opcode.READDIR: self._read_directory, Opcode.RELEASEDIR: self._release_directory,
            Opcode.GETLK: self._get_lock, Opcode.SETLK: self._set_lock, Opcode.SETLKW: self._wait_for_lock,
            Opcode.INTERRUPT: self._interrupt, Opcode.FALLOCATE: self._allocate, Opcode.LSEEK: self._seek,
        }  # fmt: skip

    def _look_up(self, request: Request) -> bytes:
        return self._entry(request.node, request.names()[0])

    def _entry(self, parent: int, name: bytes) -> bytes:
        node, status = self._nodes.look_up(parent, name)
        return wire.entry_answer(node, status)

    def _forget(self, request: Request) -> None:
        self._nodes.forget(request.node, request.unpack("Q")[0])

    def _forget_many(self, request: Request) -> None:
        for node, lookups in struct.iter_unpack("<QQ", request.body[8:]):
            self._nodes.forget(node, lookups)

    def _get_attributes(self, request: Request) -> bytes:
        return wire.attributes_answer(os.stat(self._nodes.descriptor(request.node)))

    def _set_attributes(self, request: Request) -> bytes:
        (valid, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = request.unpack(
            "I4xQQQQQQIIIIIIII"
        )
        path = self._nodes.path(request.node)
        if valid & Set.MODE:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & (Set.UID | Set.GID):
            os.chown(path, uid if valid & Set.UID else -1, gid if valid & Set.GID else -1)
        if valid & Set.SIZE:
            os.truncate(path, size)
        if valid & (Set.ATIME | Set.MTIME):
            was = os.stat(path)
            now = time.time_ns()
            accessed = now if valid & Set.ATIME_NOW else atime * 10**9 + atime_ns
            modified = now if valid & Set.MTIME_NOW else mtime * 10**9 + mtime_ns
            os.utime(path, ns=(accessed if valid & Set.ATIME else was.st_atime_ns,
                               modified if valid & Set.MTIME else was.st_mtime_ns))  # fmt: skip
        return wire.attributes_answer(os.stat(path))

    def _read_link(self, request: Request) -> bytes:
        return os.readlink(b"", dir_fd=self._nodes.descriptor(request.node))

    def _symlink(self, request: Request) -> bytes:
        name, target = request.names()
        os.symlink(target, name, dir_fd=self._nodes.descriptor(request.node))
        return self._entry(request.node, name)

    def _make_node(self, request: Request) -> bytes:
        mode, device, _, _ = request.unpack("IIII")
        (name,) = request.names(16)
        os.mknod(name, mode, device, dir_fd=self._nodes.descriptor(request.node))
        return self._entry(request.node, name)

    def _make_directory(self, request: Request) -> bytes:
        mode, _ = request.unpack("II")
        (name,) = request.names(8)
        os.mkdir(name, mode, dir_fd=self._nodes.descriptor(request.node))
        return self._entry(request.node, name)

    def _unlink(self, request: Request) -> bytes:
        os.unlink(request.names()[0], dir_fd=self._nodes.descriptor(request.node))
        return b""

    def _remove_directory(self, request: Request) -> bytes:
        os.rmdir(request.names()[0], dir_fd=self._nodes.descriptor(request.node))
        return b""

    def _rename(self, request: Request) -> bytes:
        old, new = request.names(8)
        return self._move(request, old, new)

    def _rename_with_flags(self, request: Request) -> bytes:
        _, flags, _ = request.unpack("QII")
        if flags:
            raise OSError(errno.EINVAL, "only a plain rename is known")
        old, new = request.names(16)
        return self._move(request, old, new)

    def _move(self, request: Request, old: bytes, new: bytes) -> bytes:
        target = self._nodes.descriptor(request.unpack("Q")[0])
        os.rename(old, new, src_dir_fd=self._nodes.descriptor(request.node), dst_dir_fd=target)
        return b""

    def _link(self, request: Request) -> bytes:
        source = self._nodes.path(request.unpack("Q")[0])
        (name,) = request.names(8)
        os.link(source, name, dst_dir_fd=self._nodes.descriptor(request.node), follow_symlinks=True)
        return self._entry(request.node, name)

    def _open(self, request: Request) -> bytes:
        flags = request.unpack("I")[0] & ~_NOT_PASSED
        return wire.open_answer(os.open(self._nodes.path(request.node), flags & ~os.O_NOFOLLOW))

    def _create(self, request: Request) -> bytes:
        flags, mode, _, _ = request.unpack("IIII")
        (name,) = request.names(16)
        parent = self._nodes.descriptor(request.node)
        wanted = (flags & ~os.O_DIRECT) | os.O_CREAT | os.O_NOFOLLOW
        handle = os.open(name, wanted, mode, dir_fd=parent)
        return self._entry(request.node, name) + wire.open_answer(handle)

    def _read(self, request: Request) -> bytes:
        handle, offset, size = request.unpack("QQI")
        return os.pread(handle, size, offset)

    def _write(self, request: Request) -> bytes:
        handle, offset, size = request.unpack("QQI")
        return struct.pack("<II", os.pwrite(handle, request.body[40 : 40 + size], offset), 0)

    def _release(self, request: Request) -> bytes:
        os.close(request.unpack("Q")[0])
        return b""

    def _sync(self, request: Request) -> bytes:
        handle, data_only = request.unpack("QI")
        (os.fdatasync if data_only & 1 else os.fsync)(handle)
        return b""

    def _sync_directory(self, request: Request) -> bytes:
        descriptor = os.open(self._nodes.path(request.node), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return b""

    def _statistics(self, request: Request) -> bytes:
        return wire.statistics_answer(os.statvfs(self._nodes.path(request.node)))

    def _open_directory(self, request: Request) -> bytes:
        path = self._nodes.path(request.node)
        listing = [(b".", 0, stat.S_IFDIR >> 12), (b"..", 0, stat.S_IFDIR >> 12)]
        with os.scandir(os.fsencode(path)) as entries:
            listing += [(each.name, each.inode(), each.stat(follow_symlinks=False).st_mode >> 12) for each in entries]
        with self._lock:
            handle, self._next_listing = self._next_listing, self._next_listing + 1
            self._listings[handle] = listing
        return wire.open_answer(handle)

    def _read_directory(self, request: Request) -> bytes:
        handle, offset, size = request.unpack("QQI")
        answer = b""
        for index, (name, inode, kind) in enumerate(self._listings[handle][offset:], start=offset + 1):
            entry = wire.directory_entry(inode or 1, index, kind, name)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer

    def _release_directory(self, request: Request) -> bytes:
        with self._lock:
            del self._listings[request.unpack("Q")[0]]
        return b""

    def _get_lock(self, request: Request) -> bytes:
        handle, _, start, end, kind, _ = request.unpack("QQQQII")
        answer = fcntl.fcntl(handle, _OFD_GETLK, _lock_argument(kind, start=start, end=end))
        kind, _, start, length, _ = _FLOCK.unpack(answer)
        return struct.pack("<QQII", start, start + length - 1 if length else _LOCK_END, kind, 0)

    def _set_lock(self, request: Request) -> bytes:
        handle, _, start, end, kind, _, flags = request.unpack("QQQQIII")
        if flags & 1:
            modes = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}
            fcntl.flock(handle, modes[kind] | fcntl.LOCK_NB)
        else:
            fcntl.fcntl(handle, _OFD_SETLK, _lock_argument(kind, start=start, end=end))
        return b""

    def _wait_for_lock(self, request: Request) -> bytes:
        while True:
            try:
                return self._set_lock(request)
            except BlockingIOError:
                if request.unique in self._interrupted:
                    self._interrupted.discard(request.unique)
                    raise InterruptedError(errno.EINTR, "interrupted") from None
                time.sleep(_LOCK_POLL_S)

    def _interrupt(self, request: Request) -> None:
        self._interrupted.add(request.unpack("Q")[0])

    def _allocate(self, request: Request) -> bytes:
        handle, offset, length, mode = request.unpack("QQQI")
        if _libc.fallocate(handle, mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        return b""

    def _seek(self, request: Request) -> bytes:
        handle, offset, whence = request.unpack("QQI")
        return struct.pack("<Q", os.lseek(handle, offset, whence))


def _lock_argument(kind: int, *, start: int, end: int) -> bytes:
    length = 0 if end >= _LOCK_END else end - start + 1
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
