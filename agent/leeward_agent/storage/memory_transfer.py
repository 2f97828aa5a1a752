"""Snapshots, transfers and inventories of the in-memory twin."""

import hashlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from pathlib import Path

from leeward.agent.disk_files import ROOT_DISK
from leeward.agent.types import DiskFormat, GuestSpec, HeldGuest, HeldImage, ImageFile, PoolInventory, SnapshotFile
from leeward.errors import NotFound
from leeward_agent.storage.disk_record import SnapshotNote
from leeward_agent.storage.disks import no_disk
from leeward_agent.storage.epochs import RUN_EPOCH
from leeward_agent.storage.layout import DISK_RECORD, NEW_SNAPSHOT, check_names, is_carried
from leeward_agent.storage.listing import ListedFile, encode_listing
from leeward_agent.storage.memory_contents import CHUNK_BYTES, MemoryFile, MemoryFolder
from leeward_agent.storage.memory_disks import MemoryDisks
from leeward_agent.storage.memory_images import MemoryImages
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.port_disks import ReadDisk
from leeward_agent.storage.transfer import check_file, disk_exists, read_listing

# QEMU's docs/interop/qcow2.txt, version 2: as much of a header as makes a file that is accepted as an image.
_QCOW2 = struct.Struct(">4sIQIIQIIQQIIQ")
_CLUSTER_BITS = 9


class MemoryTransfer(MemoryDisks, MemoryImages):
    """The ports in `leeward_agent.storage` say what each method promises."""

    async def known_snapshot(self, uid: str, *, operation: str) -> SnapshotFile | None:
        checked_uid(uid)
        await self._reach("known_snapshot")
        folder = self._contents.folders.get(uid)
        note = None if folder is None else folder.record.snapshot
        if note is None or note.operation != operation:
            return None
        image = self._kept(note.digest)
        return None if image is None else SnapshotFile(image, note.quiesced)

    async def new_snapshot(self, uid: str) -> Path:
        checked_uid(uid)
        await self._reach("new_snapshot")
        return self.disk_path(uid).with_name(NEW_SNAPSHOT)

    async def keep_snapshot(self, uid: str, *, operation: str, quiesced: bool) -> SnapshotFile:
        checked_uid(uid)
        await self._reach("keep_snapshot")
        folder = self._contents.folders.get(uid)
        if folder is None or ROOT_DISK not in folder.files:
            raise no_disk(uid, self.pool_id)
        root = folder.files[ROOT_DISK]
        data = _image_of(root, salt=f"{uid} {operation}".encode())
        digest = hashlib.sha256(data).hexdigest()
        image = self._publish(ImageFile(digest, len(data), root.virtual_bytes, DiskFormat.QCOW2), data)
        folder.record = replace(folder.record, snapshot=SnapshotNote(operation, digest, quiesced))
        return SnapshotFile(image, quiesced)

    async def drop_snapshot(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("drop_snapshot")

    async def snapshot_disk(self, uid: str, *, operation: str) -> SnapshotFile:
        known = await self.known_snapshot(uid, operation=operation)
        return known or await self.keep_snapshot(uid, operation=operation, quiesced=False)

    async def read_disk(self, uid: str, *, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        checked_uid(uid)
        check_file(file)
        await self._reach("read_disk")
        folder = self._contents.folders.get(uid)
        if folder is None or ROOT_DISK not in folder.files:
            raise no_disk(uid, self.pool_id)
        if not file:
            yield encode_listing([_listed(name, each.content) for name, each in _carried(folder).items()])
            return
        if file not in folder.files:
            raise NotFound(f"guest {uid} has no {file} here", resource=uid)
        content = _packed(folder.files[file])
        for start in range(offset, len(content), CHUNK_BYTES):
            await self._reach("read_disk")
            yield content[start : start + CHUNK_BYTES]

    async def pull_disk(self, spec: GuestSpec, *, operation: str, read: ReadDisk) -> None:
        check_names(spec)
        await self._reach("pull_disk")
        folder = self._contents.folders.get(spec.uid)
        if folder is not None and ROOT_DISK in folder.files:
            if folder.record.pulled_by != operation:
                raise disk_exists(spec.uid, self.pool_id)
            return
        self._image(spec.image_digest)
        files: dict[str, MemoryFile] = {}
        for each in await read_listing(read):
            what = f"guest {spec.uid}: {each.file}"
            read_file = partial(read, each.file)
            data = await self._receive(what, size_bytes=each.size_bytes, sha256=each.sha256, read=read_file)
            files[each.file] = self._unpacked(data)
        await self._reach("finish_disks")
        self._forget_parts(f"guest {spec.uid}")
        pulled = MemoryFolder(spec, files)
        self._contents.folders[spec.uid] = replace(pulled, record=replace(pulled.record, pulled_by=operation))
        self._touch(spec.uid)

    async def inventory(self) -> PoolInventory:
        await self._reach("inventory")
        contents = self._contents
        images = tuple(
            HeldImage(digest, image.size_bytes, self._users(digest), self._age_s(digest))
            for digest, image in sorted(contents.images.items())
        )
        uids = sorted(contents.folders.keys() | contents.run_epochs.keys())
        return PoolInventory(self.pool_id, images, tuple(self._held(uid) for uid in uids))

    def _held(self, uid: str) -> HeldGuest:
        folder, record = self._contents.folders.get(uid), self._contents.run_epochs.get(uid)
        files = [] if folder is None else [DISK_RECORD, *folder.files]
        if record is None:
            return HeldGuest(uid, tuple(sorted(files)), 0, "", self._age_s(uid))
        return HeldGuest(uid, tuple(sorted([*files, RUN_EPOCH])), record.epoch, record.node, self._age_s(uid))

    def _unpacked(self, data: bytes) -> MemoryFile:
        base, virtual, content = data.split(b"\n", 2)
        if base:
            self._image(base.decode())
        return MemoryFile(content, base.decode(), int(virtual))


def _packed(file: MemoryFile) -> bytes:
    """A file's bytes as another pool gets them: like a qcow2 header, they say what it is based on."""
    return b"%s\n%d\n%s" % (file.base.encode(), file.virtual_bytes, file.content)


def _carried(folder: MemoryFolder) -> dict[str, MemoryFile]:
    return {name: MemoryFile(_packed(file)) for name, file in sorted(folder.files.items()) if is_carried(name)}


def _listed(name: str, content: bytes) -> ListedFile:
    return ListedFile(name, len(content), hashlib.sha256(content).hexdigest())


def _image_of(root: MemoryFile, *, salt: bytes) -> bytes:
    cluster = 1 << _CLUSTER_BITS
    header = _QCOW2.pack(
        b"QFI\xfb", 2, 0, 0, _CLUSTER_BITS, root.virtual_bytes, 0, 1, 3 * cluster, cluster, 1, 0, 0
    )  # fmt: skip
    return header.ljust(4 * cluster, b"\0") + root.content + salt
