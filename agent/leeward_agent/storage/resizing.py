"""Larger root disks, and the way back to the one before.

The kept disk gets its name by a second link before the new one takes the first, so that at each moment the root disk is
there, old or new. When both names mean one file, a resize was cut between the two: nothing has changed yet.
"""

import os
from dataclasses import replace
from functools import partial

from leeward.agent.disk_files import KEPT_ROOT_DISK, ROOT_DISK
from leeward.agent.types import GuestSpec
from leeward.errors import FailedPrecondition
from leeward_agent.storage.base import DirectoryParts
from leeward_agent.storage.bulk import allocated_bytes, begin_copy, copy_part
from leeward_agent.storage.disks import GIB, GuestFolder, no_disk
from leeward_agent.storage.files import sync_directory
from leeward_agent.storage.layout import NEW
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.overlay import virtual_size_bytes
from leeward_agent.storage.running import Held, PoolRunner


class DirectoryResizing(DirectoryParts):
    """The port `leeward_agent.storage.port_disks.DiskStore` says what each method promises."""

    async def resize_disk(self, spec: GuestSpec, *, operation: str) -> None:
        if not await self._has(checked_uid(spec.uid), ROOT_DISK):
            raise no_disk(spec.uid, self._runner.pool_id)
        async with self._folder(spec.uid) as held:
            size_bytes = await held.run("looking at a disk", partial(_size_to_make, spec=spec, operation=operation))
            if size_bytes is None:
                return
            held.undo = held.subject.abandon
            await self._copy_root(held)
            await self._qemu_img.resize(held.subject.path / (ROOT_DISK + NEW), size_bytes=size_bytes)
            await held.run("swapping disks", partial(_swap, operation=operation), bound_s=self._runner.limits.sync_s)
            held.undo = None

    async def confirm_disk(self, uid: str) -> None:
        if await self._has(uid, ""):
            async with self._folder(uid) as held:
                await held.run("deleting a kept disk", lambda folder: folder.drop(KEPT_ROOT_DISK))

    async def revert_disk(self, uid: str) -> None:
        if await self._has(uid, ROOT_DISK):
            async with self._folder(uid) as held:
                await held.run("putting a disk back", _revert)

    async def _copy_root(self, held: Held[GuestFolder]) -> None:
        offset = await held.run("copying a disk", partial(_begin, runner=self._runner))
        while offset is not None:
            offset = await held.run("copying a disk", partial(_continue, offset=offset))


def check_growth(spec: GuestSpec, *, present_bytes: int) -> int:
    """How large the disk is to be. Raises FailedPrecondition (reason DISK_WOULD_SHRINK)."""
    wanted_bytes = spec.disk_gib * GIB or present_bytes
    if wanted_bytes < present_bytes:
        raise FailedPrecondition(
            f"the disk of guest {spec.uid} is {present_bytes} bytes large and never shrinks; {wanted_bytes} were asked",
            reason="DISK_WOULD_SHRINK",
            metadata={"disk_bytes": str(present_bytes), "wanted_bytes": str(wanted_bytes)},
        )
    return wanted_bytes


def resize_pending(uid: str) -> FailedPrecondition:
    """Another resize has not come to its end."""
    return FailedPrecondition(
        f"guest {uid} still has the disk of an earlier resize: confirm or revert that first", reason="RESIZE_PENDING"
    )


def _size_to_make(folder: GuestFolder, *, spec: GuestSpec, operation: str) -> int | None:
    """How large the copy is to be; None when this operation has made it."""
    present_bytes = virtual_size_bytes(folder.path / ROOT_DISK)
    if _is_cut_swap(folder):
        _undo_cut_swap(folder)
    elif folder.record().resized_by == operation and present_bytes >= spec.disk_gib * GIB:
        return None
    elif folder.has(KEPT_ROOT_DISK):
        raise resize_pending(folder.uid)
    return check_growth(spec, present_bytes=present_bytes)


def _begin(folder: GuestFolder, *, runner: PoolRunner) -> int | None:
    """Begin the copy; answers from where it must go on, None when it is whole."""
    root = folder.path / ROOT_DISK
    copy = folder.new(ROOT_DISK)
    if begin_copy(root, copy):
        return None
    runner.check_room(f"copying the disk of guest {folder.uid}", allocated_bytes(root))
    return 0


def _continue(folder: GuestFolder, *, offset: int) -> int | None:
    return copy_part(folder.path / ROOT_DISK, folder.path / (ROOT_DISK + NEW), offset)


def _swap(folder: GuestFolder, *, operation: str) -> None:
    os.link(folder.path / ROOT_DISK, folder.path / KEPT_ROOT_DISK)
    folder.write_record(replace(folder.record(), resized_by=operation))
    folder.adopt(ROOT_DISK)


def _revert(folder: GuestFolder) -> None:
    # First, so that the operation can resize again after its own undo, however often either is cut.
    folder.write_record(replace(folder.record(), resized_by=""))
    if _is_cut_swap(folder):
        _undo_cut_swap(folder)
    elif folder.has(KEPT_ROOT_DISK):
        (folder.path / KEPT_ROOT_DISK).replace(folder.path / ROOT_DISK)
        sync_directory(folder.path)
    folder.abandon()


def _is_cut_swap(folder: GuestFolder) -> bool:
    kept = folder.path / KEPT_ROOT_DISK
    return folder.has(KEPT_ROOT_DISK) and os.path.samefile(kept, folder.path / ROOT_DISK)


def _undo_cut_swap(folder: GuestFolder) -> None:
    folder.write_record(replace(folder.record(), resized_by=""))
    folder.drop(KEPT_ROOT_DISK)
