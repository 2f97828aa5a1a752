"""A guest's folder in a pool, and the lock on it. Blocking: for worker threads only.

`instances/<uid>/` holds the disks, `disk.json` (`disk_record`), `run-epoch`, and a lock file. A file is made under a
name that ends in `.new`, and renamed when it is whole and durable.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from leeward.agent.disk_files import ROOT_DISK
from leeward.agent.types import GuestSpec, ImageFile
from leeward.errors import DataLoss, FailedPrecondition, NotFound, StorageError
from leeward_agent.storage.disk_record import DiskRecord
from leeward_agent.storage.files import HeldLock, open_locked, replace_durably, sync_directory, sync_file, write_new
from leeward_agent.storage.images import ImageFolder
from leeward_agent.storage.layout import (
    DISK_RECORD,
    INCOMING,
    LOCK,
    NEW,
    NEW_MEMORY,
    NEW_SNAPSHOT,
    is_qcow2,
)
from leeward_agent.storage.overlay import backing_file

GIB = 1024**3
_LOCK_BOUND_S = 10.0
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class GuestFolder:
    """One guest's folder, whose lock is held."""

    path: Path
    images: ImageFolder
    token: str  # Makes names of temporary files unique.

    @property
    def uid(self) -> str:
        """Whose it is."""
        return self.path.name

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(self.path / name)

    def record(self) -> DiskRecord:
        """What was done here. Raises StorageError."""
        try:
            data = (self.path / DISK_RECORD).read_bytes()
        except FileNotFoundError:
            return DiskRecord()
        return DiskRecord.decoded(data, uid=self.uid)

    def write_record(self, record: DiskRecord) -> None:
        """Replace it, durably."""
        replace_durably(self.path / DISK_RECORD, record.encoded(), token=self.token)

    def mark(self, digest: str) -> ImageFile:
        """Note that a disk here is going to be based on the image. Raises NotFound when the image is not here."""
        record = self.record()
        if digest not in record.marks:
            self.write_record(replace(record, marks=(*record.marks, digest)))
        return self.images.add_user(digest, self.uid)

    def settle(self) -> None:
        """Take back the marks on images that no disk here is based on."""
        record = self.record()
        try:
            used = {self.base_of(name) for name in self.names() if is_qcow2(name)}
        except DataLoss:
            return  # What a damaged disk needs is not known: its image is kept, until the guest is deleted.
        kept = tuple(digest for digest in record.marks if digest in used)
        if kept != record.marks:
            for digest in set(record.marks).difference(kept):
                self.images.remove_user(digest, self.uid)
            self.write_record(replace(record, marks=kept))

    def base_of(self, name: str) -> str:
        """The digest of the image that a disk is based on, empty when it stands alone. Raises DataLoss."""
        found = backing_file(self.path / name)
        if not found:
            return ""
        image = Path(os.path.normpath(self.path / found))
        if image.parent != self.images.path:
            raise DataLoss(f"{name} of guest {self.uid} is based on {found!r}, which is no image of this pool")
        return image.stem

    def base_name(self, image: ImageFile) -> str:
        """How a disk's header names the image. Relative: hosts may have the pool in different places."""
        return os.path.relpath(self.images.file(image.digest, image.format), self.path)

    def names(self) -> list[str]:
        """All that is here."""
        return sorted(entry.name for entry in self.path.iterdir())

    def new(self, name: str) -> Path:
        """Where a file is made that will have that name; what an earlier attempt left there is removed."""
        path = self.path / (name + NEW)
        path.unlink(missing_ok=True)
        return path

    def write(self, name: str, data: bytes) -> None:
        """Make a file of these bytes, in the place of the one there is."""
        write_new(self.new(name), data)
        self.adopt(name)

    def adopt(self, name: str) -> None:
        """What was made is whole: make it durable, and give it its name."""
        path = self.path / name
        made = path.with_name(name + NEW)
        sync_file(made)
        made.replace(path)
        sync_directory(self.path)

    def drop(self, *names: str) -> None:
        """Delete files, durably. No error when absent."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        sync_directory(self.path)

    def abandon(self, made: Iterable[str] = ()) -> None:
        """After a failure: nothing half-made stays, nor `made` when there is no root disk that they belong to."""
        for path in self.path.glob(f"*{NEW}"):
            if path.name not in (NEW_MEMORY, NEW_SNAPSHOT):  # Those are the hypervisor's to write.
                path.unlink(missing_ok=True)
        if not self.has(ROOT_DISK):
            self.drop(*made)

    def clear(self) -> None:
        """Remove all that is here. The record goes last, so that no mark on an image is forgotten."""
        record = self.record()
        for entry in self.path.iterdir():
            if entry.name in (LOCK, DISK_RECORD):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        for digest in record.marks:
            self.images.remove_user(digest, self.uid)
        (self.path / DISK_RECORD).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Before the lock is let go: take back marks that are not needed, and remove what cuts have left.

        The folder itself goes when nothing of the guest is in it.
        """
        self.settle()
        if self.has(ROOT_DISK) and self.has(INCOMING):
            shutil.rmtree(self.path / INCOMING)
        for path in self.path.glob(f".{DISK_RECORD}.*"):
            path.unlink(missing_ok=True)
        left = set(self.names())
        if left <= {LOCK, DISK_RECORD} and not self.record().marks:
            (self.path / DISK_RECORD).unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                _remove_empty(self.path)
                sync_directory(self.path.parent)

    def receiving(self) -> Path:
        """The folder of what is on its way from another pool."""
        folder = self.path / INCOMING
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


@dataclass(frozen=True, slots=True)
class DiskFolder:
    """The `instances` folder of a pool."""

    path: Path
    images: ImageFolder

    def instance(self, uid: str) -> Path:
        """The guest's folder."""
        return self.path / uid

    def make_instance(self, uid: str) -> Path:
        """The guest's folder, made durably unless it exists."""
        instance = self.instance(uid)
        if not instance.is_dir():
            instance.mkdir(mode=0o711, exist_ok=True)
            sync_directory(self.path)
        return instance

    def has(self, uid: str, name: str) -> bool:
        """Whether the guest has this file. Raises OSError when the folder is not readable."""
        try:
            os.stat(self.instance(uid) / name)
        except FileNotFoundError:
            return False
        return True

    def lock(self, uid: str, *, token: str) -> tuple[GuestFolder, HeldLock]:
        """The guest's folder, made unless it exists, with its lock. Raises StorageError when another has it."""
        for _ in range(_ATTEMPTS):
            instance = self.make_instance(uid)
            # Whoever had the lock before may have removed the folder.
            with suppress(FileNotFoundError):
                lock = HeldLock(open_locked(instance / LOCK, exclusive=True, bound_s=_LOCK_BOUND_S, create=True))
                return GuestFolder(instance, self.images, token), lock
        raise StorageError(f"the folder of guest {uid} comes and goes")


def disk_size_bytes(spec: GuestSpec, *, virtual_size_bytes: int) -> int:
    """How large the root disk is to be. Raises FailedPrecondition when the image does not fit on it."""
    wanted = spec.disk_gib * GIB
    if wanted == 0:
        return virtual_size_bytes
    if wanted < virtual_size_bytes:
        raise FailedPrecondition(
            f"a disk of {spec.disk_gib} GiB ({wanted} bytes) is too small for image {spec.image_digest}, "
            f"whose virtual size is {virtual_size_bytes} bytes",
            reason="DISK_TOO_SMALL",
            metadata={"disk_bytes": str(wanted), "virtual_size_bytes": str(virtual_size_bytes)},
        )
    return wanted


def no_disk(uid: str, pool_id: str) -> NotFound:
    """The guest has no root disk here."""
    return NotFound(f"guest {uid} has no disk in pool {pool_id}", resource=uid)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # Something has just been put there.
            raise
