"""What all parts of a pool over a directory share."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from leeward.clock import Ids
from leeward_agent.firmware import Ovmf
from leeward_agent.storage.bulk import digest_part
from leeward_agent.storage.disks import DiskFolder, GuestFolder
from leeward_agent.storage.images import ImageFolder
from leeward_agent.storage.marker import IMAGES, INSTANCES
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.qemu_img import QemuImg
from leeward_agent.storage.running import Held, PoolRunner

CHUNK_BYTES = 1024**2


class DirectoryParts:
    """A pool's folders, and how work on them is done."""

    def __init__(
        self, runner: PoolRunner, *, ids: Ids, qemu_img: QemuImg, find_firmware: Callable[[], Ovmf | None]
    ) -> None:
        self._runner = runner
        self._ids = ids
        self._qemu_img = qemu_img
        self._find_firmware = find_firmware
        self._images = ImageFolder(runner.root / IMAGES, runner.pool_id)
        # Those who want the same image wait for whoever came first, which the lock on its file would not let them.
        self._fetches: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._disks = DiskFolder(runner.root / INSTANCES, self._images)

    def _folder(self, uid: str) -> AbstractAsyncContextManager[Held[GuestFolder]]:
        """The guest's folder with its lock, which goes again when there is nothing in it. Raises InvalidArgument."""
        take = partial(self._disks.lock, checked_uid(uid), token=self._ids.new())
        return self._runner.holding("locking a guest's folder", take, tidy=GuestFolder.tidy)

    async def _has(self, uid: str, name: str) -> bool:
        return await self._runner.run("looking for a guest's file", partial(self._disks.has, checked_uid(uid), name))

    async def _sha256(self, path: Path, *, size_bytes: int) -> str:
        """The digest of a file that nobody writes to, read in parts."""
        digest = hashlib.sha256()
        offset = 0
        while offset < size_bytes:
            offset = await self._runner.run(
                "reading a file", partial(digest_part, path, digest, offset, end=size_bytes)
            )
        return digest.hexdigest()


async def in_blocks(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in blocks that are worth a trip to a thread."""
    block = bytearray()
    async for chunk in chunks:
        block += chunk
        if len(block) >= CHUNK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
