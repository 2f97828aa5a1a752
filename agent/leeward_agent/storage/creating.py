"""Making, replacing and deleting the disks of guests in a directory."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from leeward.agent.disk_files import MEMORY_FILE, RESCUE_DISK, ROOT_DISK, SEED_DISK
from leeward.agent.types import GuestSpec, ImageFile
from leeward.errors import FailedPrecondition, StorageError
from leeward_agent.domain.guest_files import GuestDisks
from leeward_agent.storage.base import DirectoryParts
from leeward_agent.storage.disks import GIB, GuestFolder, disk_size_bytes
from leeward_agent.storage.layout import FIRMWARE_VARS, NEW_MEMORY, check_names, data_disk, guest_disks, wanted_files
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.running import Held
from leeward_agent.storage.seed import build_seed


class DirectoryDisks(DirectoryParts):
    """The port `leeward_agent.storage.port_disks.DiskStore` says what each method promises."""

    def disk_path(self, uid: str) -> Path:
        return self._disks.instance(checked_uid(uid)) / ROOT_DISK

    def rescue_path(self, uid: str) -> Path:
        return self._disks.instance(checked_uid(uid)) / RESCUE_DISK

    def disks(self, spec: GuestSpec) -> GuestDisks:
        return guest_disks(self._disks.instance(checked_uid(spec.uid)), spec)

    async def has_disk(self, uid: str) -> bool:
        return await self._has(uid, ROOT_DISK)

    async def create_disk(self, spec: GuestSpec) -> None:
        check_names(spec)
        async with self._folder(spec.uid) as held:
            missing = await held.run("looking for disks", partial(_missing, spec=spec))
            if missing:
                held.undo = partial(held.subject.abandon, missing)
                await self._make(held, spec, missing)
                held.undo = None

    async def drop_rescue_disk(self, uid: str) -> None:
        if await self._has(uid, ""):
            async with self._folder(uid) as held:
                await held.run("deleting a rescue disk", lambda folder: folder.drop(RESCUE_DISK))

    async def replace_disk(self, spec: GuestSpec, *, operation: str) -> None:
        check_names(spec)
        async with self._folder(spec.uid) as held:
            if await held.run("looking for a disk", partial(_is_replaced, operation=operation)):
                return
            missing = await held.run("looking for disks", partial(_missing, spec=spec))
            held.undo = partial(held.subject.abandon, missing)
            await self._prepare_root(held, spec)
            await self._make(held, spec, [name for name in missing if name not in (ROOT_DISK, SEED_DISK)])
            await held.run("making a seed disk", partial(_renew_seed, spec=spec))
            await self._make_root(held, spec)
            await held.run("replacing a disk", partial(_replace_root, operation=operation))
            held.undo = None

    async def delete_disk(self, uid: str) -> None:
        if await self._has(uid, ""):
            async with self._folder(uid) as held:
                await held.run("deleting disks", GuestFolder.clear)

    async def _make(self, held: Held[GuestFolder], spec: GuestSpec, names: list[str]) -> None:
        """Make these files, the root disk last: where it is, all is."""
        if ROOT_DISK in names:
            # What may be refused is found out before anything is made.
            await self._prepare_root(held, spec)
        data_sizes_gib = {data_disk(number): gib for number, gib in enumerate(spec.data_disks_gib, start=1)}
        for name in names:
            if name in data_sizes_gib:
                path = await held.run("preparing a disk", partial(GuestFolder.new, name=name))
                await self._qemu_img.create(path, size_bytes=data_sizes_gib[name] * GIB)
                await held.run("finishing a disk", partial(GuestFolder.adopt, name=name))
            elif name == SEED_DISK:
                await held.run("making a seed disk", partial(_renew_seed, spec=spec))
            elif name == FIRMWARE_VARS:
                await held.run("making firmware variables", self._make_firmware_vars)
            elif name == RESCUE_DISK:
                await self._make_rescue(held, spec)
        if ROOT_DISK in names:
            await self._make_root(held, spec)
            await held.run("finishing a disk", partial(GuestFolder.adopt, name=ROOT_DISK))

    async def _prepare_root(self, held: Held[GuestFolder], spec: GuestSpec) -> tuple[ImageFile, int]:
        def prepare(folder: GuestFolder) -> tuple[ImageFile, int]:
            image = folder.mark(spec.image_digest)
            return image, disk_size_bytes(spec, virtual_size_bytes=image.virtual_size_bytes)

        return await held.run("preparing a disk", prepare)

    async def _make_root(self, held: Held[GuestFolder], spec: GuestSpec) -> None:
        """Make it under its temporary name."""
        image, size_bytes = await self._prepare_root(held, spec)
        await self._make_overlay(held, ROOT_DISK, image, size_bytes=size_bytes)

    async def _make_rescue(self, held: Held[GuestFolder], spec: GuestSpec) -> None:
        assert spec.rescue is not None, "only a guest with a rescue image has a rescue disk"
        image = await held.run("preparing a rescue disk", partial(GuestFolder.mark, digest=spec.rescue.digest))
        await self._make_overlay(held, RESCUE_DISK, image, size_bytes=image.virtual_size_bytes)
        await held.run("finishing a rescue disk", partial(GuestFolder.adopt, name=RESCUE_DISK))

    async def _make_overlay(self, held: Held[GuestFolder], name: str, image: ImageFile, *, size_bytes: int) -> None:
        path = await held.run("preparing a disk", partial(GuestFolder.new, name=name))
        await self._qemu_img.create_overlay(
            path, backing=held.subject.base_name(image), backing_format=image.format, size_bytes=size_bytes
        )

    def _make_firmware_vars(self, folder: GuestFolder) -> None:
        firmware = self._find_firmware()
        if firmware is None:
            raise FailedPrecondition("this host has no UEFI firmware for guests (OVMF)", reason="NO_FIRMWARE")
        try:
            variables = firmware.variables.read_bytes()
        except OSError as error:
            raise StorageError(f"{firmware.variables} cannot be read: {error.strerror}") from error
        folder.write(FIRMWARE_VARS, variables)


def _missing(folder: GuestFolder, *, spec: GuestSpec) -> list[str]:
    missing = [name for name in wanted_files(spec) if not folder.has(name)]
    rescue = spec.rescue
    if rescue is not None and RESCUE_DISK not in missing and folder.base_of(RESCUE_DISK) != rescue.digest:
        missing.insert(0, RESCUE_DISK)  # That of an earlier rescue, from another image.
    return missing


def _renew_seed(folder: GuestFolder, *, spec: GuestSpec) -> None:
    if spec.cloud_init is None:
        folder.drop(SEED_DISK)
    else:
        folder.write(SEED_DISK, build_seed(spec, spec.cloud_init))


def _is_replaced(folder: GuestFolder, *, operation: str) -> bool:
    return folder.has(ROOT_DISK) and folder.record().replaced_by == operation


def _replace_root(folder: GuestFolder, *, operation: str) -> None:
    # A memory that remembers the old disk would destroy the new one.
    folder.drop(MEMORY_FILE, NEW_MEMORY)
    folder.adopt(ROOT_DISK)
    folder.write_record(replace(folder.record(), replaced_by=operation))
