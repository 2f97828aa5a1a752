"""Images made of guests' root disks in a directory."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from leeward.agent.disk_files import ROOT_DISK
from leeward.agent.types import DiskFormat, ImageFile, SnapshotFile
from leeward.errors import ImageRefused, StorageError
from leeward_agent.storage.base import DirectoryParts
from leeward_agent.storage.bulk import allocated_bytes
from leeward_agent.storage.disk_record import SnapshotNote
from leeward_agent.storage.disks import GuestFolder, no_disk
from leeward_agent.storage.files import sync_file
from leeward_agent.storage.image_format import HEAD_BYTES, check_image
from leeward_agent.storage.layout import NEW_SNAPSHOT
from leeward_agent.storage.running import Held


class DirectorySnapshots(DirectoryParts):
    """The port `leeward_agent.storage.port_disks.SnapshotStore` says what each method promises."""

    async def known_snapshot(self, uid: str, *, operation: str) -> SnapshotFile | None:
        if not await self._has(uid, ROOT_DISK):
            return None
        async with self._folder(uid) as held:
            return await held.run("looking for a snapshot", partial(_known, operation=operation))

    async def new_snapshot(self, uid: str) -> Path:
        async with self._folder(uid) as held:
            return await held.run("preparing a snapshot", self._prepare)

    async def keep_snapshot(self, uid: str, *, operation: str, quiesced: bool) -> SnapshotFile:
        async with self._folder(uid) as held:
            return await self._publish(held, operation=operation, quiesced=quiesced)

    async def drop_snapshot(self, uid: str) -> None:
        if await self._has(uid, NEW_SNAPSHOT):
            async with self._folder(uid) as held:
                await held.run("deleting a snapshot", lambda folder: folder.drop(NEW_SNAPSHOT))

    async def snapshot_disk(self, uid: str, *, operation: str) -> SnapshotFile:
        if not await self._has(uid, ROOT_DISK):
            raise no_disk(uid, self._runner.pool_id)
        async with self._folder(uid) as held:
            known = await held.run("looking for a snapshot", partial(_known, operation=operation))
            if known is not None:
                return known
            held.undo = partial(held.subject.drop, NEW_SNAPSHOT)
            made = await held.run("preparing a snapshot", self._prepare)
            await self._qemu_img.convert(held.subject.path / ROOT_DISK, made)
            return await self._publish(held, operation=operation, quiesced=False)

    def _prepare(self, folder: GuestFolder) -> Path:
        folder.drop(NEW_SNAPSHOT)
        # What the image that the disk is based on adds is not known without reading both.
        least_bytes = allocated_bytes(folder.path / ROOT_DISK)
        self._runner.check_room(f"a snapshot of guest {folder.uid}", least_bytes)
        return folder.path / NEW_SNAPSHOT

    async def _publish(self, held: Held[GuestFolder], *, operation: str, quiesced: bool) -> SnapshotFile:
        made = held.subject.path / NEW_SNAPSHOT
        held.undo = partial(held.subject.drop, NEW_SNAPSHOT)  # Does nothing once it has become an image.
        await held.do("finishing a snapshot", partial(sync_file, made), bound_s=self._runner.limits.sync_s)
        size_bytes, virtual_bytes = await held.do("checking a snapshot", partial(_checked, made))
        digest = await self._sha256(made, size_bytes=size_bytes)
        image = ImageFile(digest, size_bytes, virtual_bytes, DiskFormat.QCOW2)

        def publish(folder: GuestFolder) -> None:
            # The note first: should this be cut here, the image is either found by it or not there at all.
            note = SnapshotNote(operation, digest, quiesced)
            folder.write_record(replace(folder.record(), snapshot=note))
            os.chown(made, os.geteuid(), os.getegid())  # QEMU's user made it, and must not own an image.
            folder.images.publish(made, digest, DiskFormat.QCOW2)

        await held.run("publishing a snapshot", publish)
        return SnapshotFile(image, quiesced)


def _known(folder: GuestFolder, *, operation: str) -> SnapshotFile | None:
    note = folder.record().snapshot
    if note is None or note.operation != operation:
        return None
    image = folder.images.keep(note.digest)
    return None if image is None else SnapshotFile(image, note.quiesced)


def _checked(made: Path) -> tuple[int, int]:
    """The size of the file and of the disk in it. Raises StorageError unless it is a standalone qcow2."""
    with made.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size_bytes = os.fstat(file.fileno()).st_size
    try:
        return size_bytes, check_image(head=head, declared=DiskFormat.QCOW2, size_bytes=size_bytes)
    except ImageRefused as error:
        raise StorageError(f"the snapshot that was made is no image: {error.message}") from error
