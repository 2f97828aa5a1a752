"""Writing keys and certificates: private from the first byte on, and whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from leeward.errors import AlreadyExists, FailedPrecondition

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


def make_private_directory(directory: Path) -> None:
    """Make `directory` and its parents, only for the owner. One that exists keeps its mode.

    Raises FailedPrecondition when it cannot be made.
    """
    try:
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot("make the directory", directory, error) from error


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, durably. Raises AlreadyExists or FailedPrecondition."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(temporary, content)
        # A hard link, unlike a rename, refuses to take the place of a file that somebody made meanwhile.
        os.link(temporary, path)
        _sync_directory(path.parent)
    except FileExistsError as error:
        raise AlreadyExists.named(str(path)) from error
    except OSError as error:
        raise _cannot("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_directory(target: Path, files: Mapping[str, bytes], *, replace: bool) -> None:
    """Make the directory `target` hold exactly `files`, readable only by the owner, all or none.

    Raises AlreadyExists when it is there and `replace` is not set, FailedPrecondition when it cannot be written.
    """
    if target.exists() and not replace:
        raise AlreadyExists.named(str(target))
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir(mode=_DIRECTORY_MODE)
            for name, content in files.items():
                _write(fresh / name, content)
            _sync_directory(fresh)
            _put_in_place(fresh, target, aside=Path(scratch) / "old")
    except OSError as error:
        raise _cannot("write", target, error) from error


def _put_in_place(fresh: Path, target: Path, *, aside: Path) -> None:
    """Rename `fresh` to `target`; what was there goes to `aside`, and comes back when the rename fails."""
    had_one = target.exists()
    if had_one:
        target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        if had_one:
            aside.rename(target)
        raise
    _sync_directory(target.parent)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(action: str, path: Path, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"cannot {action} {path}: {error.strerror}")
