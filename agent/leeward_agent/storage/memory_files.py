"""Memory files of suspended guests in a directory."""

from pathlib import Path

from leeward.agent.disk_files import MEMORY_FILE
from leeward_agent.storage.base import DirectoryParts
from leeward_agent.storage.disks import GuestFolder
from leeward_agent.storage.layout import NEW_MEMORY
from leeward_agent.storage.names import checked_uid

# libvirt writes this first and puts "LibvirtQemudSave" in its place when all is written (qemu_saveimage.h).
_UNFINISHED = b"LibvirtQemudPart"


class DirectoryMemory(DirectoryParts):
    """The port `leeward_agent.storage.port_disks.MemoryStore` says what each method promises."""

    def memory_path(self, uid: str) -> Path:
        return self._disks.instance(checked_uid(uid)) / MEMORY_FILE

    async def new_memory(self, uid: str) -> Path:
        async with self._folder(uid) as held:
            await held.run("preparing a memory file", lambda folder: folder.drop(NEW_MEMORY))
            return held.subject.path / NEW_MEMORY

    async def keep_memory(self, uid: str) -> bool:
        async with self._folder(uid) as held:
            return await held.run("keeping a memory file", _keep, bound_s=self._runner.limits.sync_s)

    async def has_memory(self, uid: str) -> bool:
        return await self._has(uid, MEMORY_FILE)

    async def discard_memory(self, uid: str) -> None:
        if await self._has(uid, ""):
            async with self._folder(uid) as held:
                await held.run("deleting a memory file", lambda folder: folder.drop(MEMORY_FILE, NEW_MEMORY))


def _keep(folder: GuestFolder) -> bool:
    if folder.has(NEW_MEMORY):
        with (folder.path / NEW_MEMORY).open("rb") as file:
            is_whole = file.read(len(_UNFINISHED)) not in (_UNFINISHED, b"")
        if is_whole:
            folder.adopt(MEMORY_FILE)
        else:
            folder.drop(NEW_MEMORY)
    return folder.has(MEMORY_FILE)
