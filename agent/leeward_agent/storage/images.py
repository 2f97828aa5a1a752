"""Images in a pool, named by their digest. Blocking: for worker threads only.

`images/<digest>.<format>` is the image. Beside it `images/<digest>.users/` holds an empty file for each guest whose
disk is based on it. That folder decides whether the image may go: removing a folder fails while anything is in it,
atomically and at the server, whatever this host has cached.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from leeward.agent.types import DiskFormat, ImageFile
from leeward.errors import DataLoss, FailedPrecondition, ImageRefused, NotFound
from leeward_agent.storage.files import HeldLock, locked, open_locked, sync_directory, try_lock, write_all
from leeward_agent.storage.image_format import HEAD_BYTES, check_image
from leeward_agent.storage.names import is_digest

_UPLOAD_PREFIX = ".upload-"
_PUBLISH_LOCK = ".lock"
_LOCK_BOUND_S = 10.0
_PART_PREFIX = ".part-"
_PART_KEPT_S = 3600.0
_SUFFIXES = frozenset(image_format.value for image_format in DiskFormat)
_USERS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image as it lies there; users as uids."""

    digest: str
    size_bytes: int
    users: tuple[str, ...]
    age_s: float


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The `images` folder of a pool."""

    path: Path
    pool_id: str

    def find(self, digest: str) -> ImageFile | None:
        """The image, with its virtual size read from its header; None when it is not here. Raises DataLoss."""
        for image_format in DiskFormat:
            try:
                fd = os.open(self.file(digest, image_format), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                size_bytes = os.fstat(fd).st_size
                virtual = check_image(head=os.pread(fd, HEAD_BYTES, 0), declared=image_format, size_bytes=size_bytes)
            except ImageRefused as error:
                raise DataLoss(f"image {digest} in pool {self.pool_id} is damaged: {error}") from error
            finally:
                os.close(fd)
            return ImageFile(digest=digest, size_bytes=size_bytes, virtual_size_bytes=virtual, format=image_format)
        return None

    def file(self, digest: str, image_format: DiskFormat) -> Path:
        """Where the image is, or would be."""
        return self.path / f"{digest}.{image_format.value}"

    def keep(self, digest: str) -> ImageFile | None:
        """Like `find`, and makes sure that disks can be based on it: a deletion may have stopped half-way."""
        with locked(self.path / _PUBLISH_LOCK, exclusive=True, bound_s=_LOCK_BOUND_S, create=True):
            image = self.find(digest)
            if image is not None:
                self._users(digest).mkdir(mode=0o700, exist_ok=True)
                os.utime(self.file(digest, image.format))  # Asked for now, so as good as new for who counts its age.
                sync_directory(self.path)
            return image

    def publish(self, made: Path, digest: str, image_format: DiskFormat) -> None:
        """Give a file that is whole and durable the name of an image."""
        made.chmod(0o644)
        os.utime(made)
        with locked(self.path / _PUBLISH_LOCK, exclusive=True, bound_s=_LOCK_BOUND_S, create=True):
            self._users(digest).mkdir(mode=0o700, exist_ok=True)
            made.rename(self.file(digest, image_format))
            sync_directory(self.path)

    def add_user(self, digest: str, uid: str) -> ImageFile:
        """Note that the guest's disk is based on the image. Raises NotFound when the image is not here."""
        missing = NotFound.named(f"image {digest} in pool {self.pool_id}")
        try:
            os.close(os.open(self._users(digest) / uid, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except FileNotFoundError as error:
            raise missing from error
        image = self.find(digest)
        if image is None:
            raise missing
        sync_directory(self._users(digest))
        return image

    def remove_user(self, digest: str, uid: str) -> None:
        """The guest's disk is gone. No error when it was not noted."""
        (self._users(digest) / uid).unlink(missing_ok=True)

    def delete(self, digest: str) -> None:
        """Remove the image; no error when absent. Raises FailedPrecondition while a disk is based on it."""
        with locked(self.path / _PUBLISH_LOCK, exclusive=True, bound_s=_LOCK_BOUND_S, create=True):
            users = self._users(digest)
            try:
                users.rmdir()
            except FileNotFoundError:
                pass  # It was never here, or an earlier deletion got this far.
            except OSError as error:
                names = sorted(entry.name for entry in users.iterdir())
                if not names:
                    raise
                raise FailedPrecondition(
                    f"image {digest} in pool {self.pool_id} is in use: {len(names)} disks are based on it "
                    f"({', '.join(names[:_USERS_SHOWN])}{', ...' if len(names) > _USERS_SHOWN else ''})",
                    metadata={"digest": digest, "users": str(len(names))},
                ) from error
            for image_format in DiskFormat:
                self.file(digest, image_format).unlink(missing_ok=True)
            sync_directory(self.path)
        self.sweep()

    def everything(self) -> list[ListedImage]:
        """All images here, in order of digest."""
        now = self.now()
        listed = []
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            digest, _, suffix = entry.name.partition(".")
            if suffix in _SUFFIXES and is_digest(digest):
                with contextlib.suppress(FileNotFoundError):  # It is being deleted.
                    found = entry.stat(follow_symlinks=False)
                    age_s = max(0.0, now - found.st_mtime)
                    listed.append(ListedImage(digest, found.st_size, self.users(digest), age_s))
        return listed

    def users(self, digest: str) -> tuple[str, ...]:
        """The guests whose disks are based on the image, in order."""
        try:
            return tuple(sorted(entry.name for entry in self._users(digest).iterdir()))
        except FileNotFoundError:
            return ()

    def read(self, digest: str, *, offset: int, length: int) -> bytes:
        """Part of the image; empty at its end. Raises NotFound."""
        for image_format in DiskFormat:
            try:
                fd = os.open(self.file(digest, image_format), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        raise NotFound.named(f"image {digest} in pool {self.pool_id}")

    def sweep(self) -> None:
        """Remove what uploads left behind that died, and parts of fetched images that nobody came back for.

        One that is under way, on any host, holds a lock on its file.
        """
        leftovers = [(path, 0.0) for path in self.path.glob(f"{_UPLOAD_PREFIX}*")]
        parts = [(path, _PART_KEPT_S) for path in self.path.glob(f"{_PART_PREFIX}*")]
        now = self.now() if parts else 0.0
        for leftover, kept_s in (*leftovers, *parts):
            try:
                fd = os.open(leftover, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                is_old = not kept_s or now - os.fstat(fd).st_mtime > kept_s
                if is_old and try_lock(fd, exclusive=True):
                    leftover.unlink(missing_ok=True)
            finally:
                os.close(fd)

    def part(self, digest: str) -> tuple[Path, HeldLock]:
        """What has come of an image so far, with its lock. Raises StorageError while somebody else fetches it."""
        path = self.path / f"{_PART_PREFIX}{digest}"
        return path, HeldLock(open_locked(path, exclusive=True, bound_s=_LOCK_BOUND_S, create=True))

    def now(self) -> float:
        """The time by the clock that stamps files here, which may be another host's."""
        fd, path = tempfile.mkstemp(prefix=_UPLOAD_PREFIX, dir=self.path)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            Path(path).unlink(missing_ok=True)

    def upload(self, *, digest: str, image_format: DiskFormat, size_bytes: int, token: str) -> "Upload":
        """Begin to receive an image."""
        return Upload(self, digest=digest, image_format=image_format, size_bytes=size_bytes, token=token)

    def _users(self, digest: str) -> Path:
        return self.path / f"{digest}.users"


class Upload:
    """An image on its way into the pool, under a temporary name until it has been found whole."""

    def __init__(
        self, folder: ImageFolder, *, digest: str, image_format: DiskFormat, size_bytes: int, token: str
    ) -> None:
        self._folder = folder
        self._digest = digest
        self._format = image_format
        self._size_bytes = size_bytes
        self._received = 0
        self._head = b""
        self._sha256 = hashlib.sha256()
        self._temporary = folder.path / f"{_UPLOAD_PREFIX}{digest[:16]}-{token}"
        # An abort may come from another thread while a write that nobody waits for any more is still running.
        self._lock = threading.Lock()
        self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try_lock(self._fd, exclusive=True)

    def write(self, data: bytes) -> None:
        """Take more of the image. Raises ImageRefused as soon as it is known to be unacceptable."""
        with self._lock:
            if self._fd < 0:
                return
            self._received += len(data)
            if self._received > self._size_bytes:
                raise ImageRefused(f"more than the declared {self._size_bytes} bytes came")
            self._sha256.update(data)
            write_all(self._fd, data)
            if len(self._head) < HEAD_BYTES:
                self._head += data[: HEAD_BYTES - len(self._head)]
                if len(self._head) >= min(HEAD_BYTES, self._size_bytes):
                    self._check_head()

    def publish(self) -> ImageFile:
        """Give the image its name, durably. Raises ImageRefused when it is not what was declared."""
        with self._lock:
            if self._received != self._size_bytes:
                raise ImageRefused(f"{self._received} bytes came, {self._size_bytes} were declared")
            found = self._sha256.hexdigest()
            if found != self._digest:
                raise ImageRefused(f"the bytes have the SHA-256 {found}, not the declared {self._digest}")
            image = self._check_head()
            os.fsync(self._fd)
            self._folder.publish(self._temporary, self._digest, self._format)
            self._close()
            return image

    def abort(self) -> None:
        """Leave nothing behind. No error when it was published."""
        with self._lock:
            if self._fd >= 0:
                self._temporary.unlink(missing_ok=True)
                self._close()

    def _check_head(self) -> ImageFile:
        virtual = check_image(head=self._head, declared=self._format, size_bytes=self._size_bytes)
        return ImageFile(
            digest=self._digest, size_bytes=self._size_bytes, virtual_size_bytes=virtual, format=self._format
        )

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1
