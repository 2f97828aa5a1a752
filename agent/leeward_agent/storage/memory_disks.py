"""Disks and memory files of the in-memory twin. Their bytes stand for content: two are equal only as copies."""

from dataclasses import replace
from pathlib import Path

from leeward.agent.disk_files import KEPT_ROOT_DISK, MEMORY_FILE, RESCUE_DISK, ROOT_DISK, SEED_DISK
from leeward.agent.types import GuestSpec
from leeward_agent.domain.guest_files import GuestDisks
from leeward_agent.storage.disks import GIB, disk_size_bytes, no_disk
from leeward_agent.storage.layout import check_names, data_disk, guest_disks, wanted_files
from leeward_agent.storage.memory_contents import MemoryFile, MemoryFolder, MemoryParts
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.resizing import check_growth, resize_pending
from leeward_agent.storage.seed_files import seed_files


class MemoryDisks(MemoryParts):
    """The ports in `leeward_agent.storage.port_disks` say what each method promises."""

    def disk_path(self, uid: str) -> Path:
        return self._instance(uid) / ROOT_DISK

    def rescue_path(self, uid: str) -> Path:
        return self._instance(uid) / RESCUE_DISK

    def memory_path(self, uid: str) -> Path:
        return self._instance(uid) / MEMORY_FILE

    def disks(self, spec: GuestSpec) -> GuestDisks:
        return guest_disks(self._instance(spec.uid), spec)

    async def has_disk(self, uid: str) -> bool:
        checked_uid(uid)
        await self._reach("has_disk")
        return self._has(uid, ROOT_DISK)

    async def create_disk(self, spec: GuestSpec) -> None:
        check_names(spec)
        await self._reach("create_disk")
        present = self._contents.folders.get(spec.uid)
        files = {} if present is None else present.files
        made = {name: self._made(spec, name) for name in wanted_files(spec) if not _is_there(files, name, spec)}
        if made:
            folder = self._contents.folders.setdefault(spec.uid, MemoryFolder(spec))
            folder.files.update(made)
            self._touch(spec.uid)

    async def drop_rescue_disk(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("drop_rescue_disk")
        self._drop(uid, RESCUE_DISK)

    async def replace_disk(self, spec: GuestSpec, *, operation: str) -> None:
        check_names(spec)
        await self._reach("replace_disk")
        folder = self._contents.folders.get(spec.uid)
        if folder is not None and ROOT_DISK in folder.files and folder.record.replaced_by == operation:
            return
        files = {} if folder is None else folder.files
        renewed = {ROOT_DISK, SEED_DISK}
        made = {n: self._made(spec, n) for n in wanted_files(spec) if n in renewed or not _is_there(files, n, spec)}
        kept = {name: file for name, file in files.items() if name not in (MEMORY_FILE, SEED_DISK)}
        record = MemoryFolder(spec).record if folder is None else folder.record
        self._contents.folders[spec.uid] = MemoryFolder(spec, kept | made, replace(record, replaced_by=operation))
        self._touch(spec.uid)

    async def resize_disk(self, spec: GuestSpec, *, operation: str) -> None:
        checked_uid(spec.uid)
        await self._reach("resize_disk")
        folder = self._contents.folders.get(spec.uid)
        root = None if folder is None else folder.files.get(ROOT_DISK)
        if folder is None or root is None:
            raise no_disk(spec.uid, self.pool_id)
        if folder.record.resized_by == operation and root.virtual_bytes >= spec.disk_gib * GIB:
            return
        if KEPT_ROOT_DISK in folder.files:
            raise resize_pending(spec.uid)
        size_bytes = check_growth(spec, present_bytes=root.virtual_bytes)
        folder.files[KEPT_ROOT_DISK] = root
        folder.files[ROOT_DISK] = replace(root, content=root.content + b" resized", virtual_bytes=size_bytes)
        folder.record = replace(folder.record, resized_by=operation)
        folder.spec = replace(folder.spec, disk_gib=spec.disk_gib)
        self._touch(spec.uid)

    async def confirm_disk(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("confirm_disk")
        self._drop(uid, KEPT_ROOT_DISK)

    async def revert_disk(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("revert_disk")
        folder = self._contents.folders.get(uid)
        if folder is not None:
            folder.record = replace(folder.record, resized_by="")
            kept = folder.files.pop(KEPT_ROOT_DISK, None)
            if kept is not None:
                folder.files[ROOT_DISK] = kept
                folder.spec = replace(folder.spec, disk_gib=kept.virtual_bytes // GIB)
                self._touch(uid)

    async def delete_disk(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("delete_disk")
        self._contents.folders.pop(uid, None)
        self._contents.run_epochs.pop(uid, None)
        self._contents.changed_s.pop(uid, None)
        self._forget_parts(f"guest {uid}")

    async def new_memory(self, uid: str) -> Path:
        checked_uid(uid)
        await self._reach("new_memory")
        folder = self._contents.folders.get(uid)
        if folder is not None:
            folder.begins_memory = True
            if self._contents.memories is not None:
                self._contents.memories.pop(self._instance(uid), None)
        # A simulated hypervisor knows a memory by its path; what has no name yet would be lost when it gets one.
        return self.memory_path(uid)

    async def keep_memory(self, uid: str) -> bool:
        checked_uid(uid)
        await self._reach("keep_memory")
        folder = self._contents.folders.get(uid)
        if folder is None:
            return False
        if folder.begins_memory:
            folder.begins_memory = False
            if self._contents.memories is None or self._instance(uid) in self._contents.memories:
                folder.files[MEMORY_FILE] = MemoryFile(f"memory of {uid}".encode())
                self._touch(uid)
        return MEMORY_FILE in folder.files

    async def has_memory(self, uid: str) -> bool:
        checked_uid(uid)
        await self._reach("has_memory")
        return self._has(uid, MEMORY_FILE)

    async def discard_memory(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("discard_memory")
        self._drop(uid, MEMORY_FILE)
        folder = self._contents.folders.get(uid)
        if folder is not None:
            folder.begins_memory = False

    def _instance(self, uid: str) -> Path:
        return self._root / "instances" / checked_uid(uid)

    def _has(self, uid: str, name: str) -> bool:
        folder = self._contents.folders.get(uid)
        return folder is not None and name in folder.files

    def _drop(self, uid: str, name: str) -> None:
        folder = self._contents.folders.get(uid)
        if folder is not None and folder.files.pop(name, None) is not None:
            self._touch(uid)

    def _made(self, spec: GuestSpec, name: str) -> MemoryFile:
        content = f"{name} of {spec.uid}".encode()
        if name == ROOT_DISK:
            image = self._image(spec.image_digest)
            size_bytes = disk_size_bytes(spec, virtual_size_bytes=image.virtual_size_bytes)
            return MemoryFile(content + b" over " + image.digest.encode(), image.digest, size_bytes)
        if name == RESCUE_DISK and spec.rescue is not None:
            image = self._image(spec.rescue.digest)
            return MemoryFile(content, image.digest, image.virtual_size_bytes)
        if name == SEED_DISK and spec.cloud_init is not None:
            return MemoryFile(b"\n".join(seed_files(spec, spec.cloud_init).values()))
        sizes_gib = {data_disk(number): gib for number, gib in enumerate(spec.data_disks_gib, start=1)}
        return MemoryFile(content, virtual_bytes=sizes_gib.get(name, 0) * GIB)


def _is_there(files: dict[str, MemoryFile], name: str, spec: GuestSpec) -> bool:
    if name == RESCUE_DISK and spec.rescue is not None and name in files:
        return files[name].base == spec.rescue.digest
    return name in files
