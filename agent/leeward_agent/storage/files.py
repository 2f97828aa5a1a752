"""Durable files, and locks between hosts. Blocking: for worker threads only."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from leeward.errors import StorageError

_LOCK_RETRY_S = 0.02


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename or a new file is lost in a crash without it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet, durably but for its name. Raises FileExistsError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; the operating system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_durably(path: Path, data: bytes, *, token: str) -> None:
    """Give `path` new content: the old or the new after a crash, never a mixture.

    `token` makes the name of the temporary file unique.
    """
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    try:
        write_new(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def link_new(path: Path, data: bytes, *, token: str) -> bool:
    """Make `path` appear with its whole content, unless it exists. Answers whether it was made here.

    Hard-linking a finished file is exclusive like O_EXCL, but nobody ever sees a file half written. It is atomic on
    NFS too.
    """
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    write_new(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take a lock on an open file without waiting.

    flock belongs to the open file, so it also holds between threads of one process (a POSIX record lock would not, and
    would be lost when any other descriptor of the file is closed). On NFS Linux turns it into a byte-range lock at the
    server, so that it holds between hosts, and reads what the server has once the lock is held.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_locked(path: Path, *, exclusive: bool, bound_s: float, create: bool) -> int:
    """An open descriptor of `path` with the lock held; closing it lets go. The kernel does when the process dies.

    Raises StorageError when somebody else holds it for `bound_s`, FileNotFoundError when it is absent and not created.
    """
    deadline = time.monotonic() + bound_s
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            if try_lock(fd, exclusive=exclusive) and _still_named(fd, path):
                kept, fd = fd, -1
                return kept
        finally:
            if fd >= 0:
                os.close(fd)
        if time.monotonic() >= deadline:
            raise StorageError(f"{path.name} in {path.parent.name} has been locked by another task for {bound_s:g} s")
        time.sleep(_LOCK_RETRY_S)


class HeldLock:
    """A lock that is taken in one thread and released in another, once, whoever comes first."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mutex = threading.Lock()

    @property
    def is_held(self) -> bool:
        """Whether it has not been released. Only within `last_use` does it stay so."""
        return self._fd >= 0

    def last_use(self) -> AbstractContextManager[bool]:
        """Keeps other threads from using or releasing it meanwhile."""
        return self._mutex

    def release(self) -> None:
        """Let go."""
        fd, self._fd = self._fd, -1
        os.close(fd)


@contextmanager
def locked(path: Path, *, exclusive: bool, bound_s: float, create: bool) -> Iterator[int]:
    """`open_locked` for a with statement."""
    fd = open_locked(path, exclusive=exclusive, bound_s=bound_s, create=create)
    try:
        yield fd
    finally:
        os.close(fd)


def _still_named(fd: int, path: Path) -> bool:
    # The holder before us may have deleted the file: a lock on a nameless file protects nothing.
    held = os.fstat(fd)
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
