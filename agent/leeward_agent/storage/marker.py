"""A pool's identity, kept in the pool itself, and its file system. Blocking: for worker threads only."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from leeward.errors import AlreadyExists, NotFound, StorageError
from leeward_agent.storage.files import link_new
from leeward_agent.storage.names import checked_uid

MARKER = ".leeward-pool"
IMAGES = "images"
INSTANCES = "instances"
HEARTBEATS = "heartbeats"
PILLS = "pills"
_VERSION = 1
_MAX_MARKER_BYTES = 4096

# File systems that one host keeps to itself. Any other kind, known or not, counts as one that other hosts can mount,
# which is the safe guess.
_LOCAL_FILE_SYSTEMS = frozenset(
    {"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)


@dataclass(frozen=True, slots=True)
class Mount:
    """Which directory was opened: a pool whose mount has gone leaves another one under the same path."""

    device: int
    inode: int


def create_pool(root: Path, *, pool_id: str, token: str) -> None:
    """Make an existing directory a pool. Of several that try at once, one wins; the others get AlreadyExists."""
    if not root.is_dir():
        raise NotFound.named(f"pool directory {root}")
    marker = json.dumps({"id": checked_uid(pool_id), "version": _VERSION}) + "\n"
    if not link_new(root / MARKER, marker.encode(), token=token):
        raise AlreadyExists.named(f"pool at {root}")


def open_pool(root: Path) -> tuple[str, Mount]:
    """The pool's id and where it is; makes its folders. Raises NotFound (no pool here), StorageError (not readable)."""
    pool_id = _read_marker(root / MARKER)
    for folder in (IMAGES, INSTANCES, HEARTBEATS):
        (root / folder).mkdir(mode=0o711, exist_ok=True)
    return pool_id, mount_of(root)


def mount_of(root: Path) -> Mount:
    """What lies under the path now."""
    found = root.stat()
    return Mount(device=found.st_dev, inode=found.st_ino)


def check_mounted(root: Path, expected: Mount) -> None:
    """Raises StorageError when the path leads to another directory than the pool that was opened.

    Without this check an unmounted pool would be written to, and found healthy, on the directory below the mount.
    """
    if mount_of(root) != expected:
        raise StorageError(f"pool at {root}: another directory is there now, so the pool is not mounted any more")


def is_network_filesystem(root: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the file system at `root` is of a kind that several hosts can mount (see proc(5) for the source)."""
    best_length, kind = -1, ""
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(_unescape(before.split(" ")[4]))
        length = len(mount_point.parts)
        # Of equal mount points the later one lies on top.
        if root.is_relative_to(mount_point) and length >= best_length:
            best_length, kind = length, after.split(" ")[0]
    return kind not in _LOCAL_FILE_SYSTEMS


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _read_marker(marker: Path) -> str:
    try:
        fd = os.open(marker, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise NotFound.named(f"pool marker {marker}") from error
    try:
        text = os.read(fd, _MAX_MARKER_BYTES)
    finally:
        os.close(fd)
    try:
        content = json.loads(text)
        pool_id, version = content["id"], content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"pool marker {marker} cannot be understood") from error
    if version != _VERSION or not isinstance(pool_id, str):
        raise StorageError(f"pool marker {marker} is of version {version!r}; this agent knows {_VERSION}")
    return checked_uid(pool_id)
