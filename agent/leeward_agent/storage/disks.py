"""A guest's folder in a pool. Blocking: for worker threads only.

`instances/<uid>/` holds `root.qcow2`, `disk.json` (what it was made from), `run-epoch`, and a lock file. `disk.json` is
written before the image is marked as used and removed after that mark, so that a mark can always be traced and taken
back.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from leeward.agent.types import DiskFormat, GuestSpec
from leeward.errors import FailedPrecondition, StorageError
from leeward_agent.storage.files import HeldLock, open_locked, replace_durably, sync_directory, sync_file
from leeward_agent.storage.images import ImageFolder

ROOT_DISK = "root.qcow2"
GIB = 1024**3
_NEW_ROOT_DISK = "root.qcow2.new"
_DISK_RECORD = "disk.json"
_LOCK = ".lock"
_LOCK_BOUND_S = 10.0


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A root disk about to be made. Holds the guest's folder locked until `finish` or `give_up`."""

    path: Path
    backing: str  # Relative to the disk's folder: hosts may mount the pool in different places.
    backing_format: DiskFormat
    size_bytes: int
    image_digest: str
    lock: HeldLock


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

    def has_disk(self, uid: str) -> bool:
        """Whether the root disk is here. Raises StorageError when the folder is not readable."""
        try:
            os.stat(self.instance(uid) / ROOT_DISK)
        except FileNotFoundError:
            return False
        return True

    def plan(self, spec: GuestSpec, *, token: str) -> DiskPlan | None:
        """Prepare a root disk; None when it exists. Raises NotFound (image), FailedPrecondition (too small)."""
        instance = self.make_instance(spec.uid)
        lock = HeldLock(open_locked(instance / _LOCK, exclusive=True, bound_s=_LOCK_BOUND_S, create=True))
        plan = None
        try:
            if not self.has_disk(spec.uid):
                plan = self._plan_locked(spec, instance, lock, token)
        finally:
            if plan is None:
                lock.release()
        return plan

    def finish(self, plan: DiskPlan) -> None:
        """The disk is written: make it durable and give it its name. Does nothing after `give_up`."""
        with plan.lock.last_use():
            if plan.lock.is_held:
                sync_file(plan.path)
                plan.path.rename(plan.path.with_name(ROOT_DISK))
                sync_directory(plan.path.parent)
                plan.lock.release()

    def give_up(self, plan: DiskPlan) -> None:
        """The disk could not be made: leave nothing of it. Does nothing after `finish`."""
        uid = plan.path.parent.name
        with plan.lock.last_use():
            if plan.lock.is_held:
                try:
                    if not self.has_disk(uid):
                        self._forget(uid, plan.image_digest)
                finally:
                    plan.lock.release()

    def delete(self, uid: str) -> None:
        """Remove all that is here for the guest. No error when absent."""
        instance = self.instance(uid)
        try:
            lock_fd = open_locked(instance / _LOCK, exclusive=True, bound_s=_LOCK_BOUND_S, create=True)
        except FileNotFoundError:
            return
        try:
            digest = _recorded_digest(instance)
            for entry in instance.iterdir():
                if entry.name in (_LOCK, _DISK_RECORD):
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
            self._forget(uid, digest)
        finally:
            os.close(lock_fd)

    def _plan_locked(self, spec: GuestSpec, instance: Path, lock: HeldLock, token: str) -> DiskPlan:
        (instance / _NEW_ROOT_DISK).unlink(missing_ok=True)
        earlier = _recorded_digest(instance)
        if earlier is not None:
            self.images.remove_user(earlier, spec.uid)
        record = {"image_digest": spec.image_digest, "disk_gib": spec.disk_gib}
        replace_durably(instance / _DISK_RECORD, json.dumps(record).encode() + b"\n", token=token)
        planned = False
        try:
            image = self.images.add_user(spec.image_digest, spec.uid)
            size_bytes = disk_size_bytes(spec, virtual_size_bytes=image.virtual_size_bytes)
            planned = True
        finally:
            if not planned:
                self._forget(spec.uid, spec.image_digest)
        return DiskPlan(
            path=instance / _NEW_ROOT_DISK,
            backing=os.path.relpath(self.images.file(image.digest, image.format), instance),
            backing_format=image.format,
            size_bytes=size_bytes,
            image_digest=image.digest,
            lock=lock,
        )

    def _forget(self, uid: str, digest: str | None) -> None:
        """Take back the mark on the image and remove the folder, if nothing else is in it. The lock is held."""
        instance = self.instance(uid)
        (instance / _NEW_ROOT_DISK).unlink(missing_ok=True)
        if digest is not None:
            self.images.remove_user(digest, uid)
        (instance / _DISK_RECORD).unlink(missing_ok=True)
        if all(entry.name == _LOCK for entry in instance.iterdir()):
            (instance / _LOCK).unlink(missing_ok=True)
            instance.rmdir()
            sync_directory(self.path)


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


def _recorded_digest(instance: Path) -> str | None:
    try:
        content = json.loads((instance / _DISK_RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{_DISK_RECORD} of {instance.name} cannot be understood") from error
    digest = content.get("image_digest") if isinstance(content, dict) else None
    if not isinstance(digest, str):
        raise StorageError(f"{_DISK_RECORD} of {instance.name} names no image")
    return digest
