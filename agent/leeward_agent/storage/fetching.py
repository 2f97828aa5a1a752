"""Images in a directory: stored, fetched from other pools, read, deleted."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from pathlib import Path

from leeward.agent.types import DiskFormat, ImageFile
from leeward.errors import ImageRefused
from leeward_agent.storage.base import CHUNK_BYTES, DirectoryParts, in_blocks
from leeward_agent.storage.image_format import HEAD_BYTES, check_image
from leeward_agent.storage.images import Upload
from leeward_agent.storage.names import checked_digest
from leeward_agent.storage.port_images import ReadImage
from leeward_agent.storage.receiving import Expected, receive


class DirectoryImages(DirectoryParts):
    """The port `leeward_agent.storage.port_images.ImageStore` says what each method promises."""

    async def store_image(
        self, *, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        present = await self._kept(checked_digest(digest))
        if present is not None:
            return present
        await self._run_room(f"image {digest}", size_bytes)
        begin = partial(
            self._images.upload, digest=digest, image_format=format, size_bytes=size_bytes, token=self._ids.new()
        )
        upload = await self._runner.run("beginning an image", begin, discard=Upload.abort)
        try:
            async for block in in_blocks(chunks):
                await self._runner.run("writing an image", partial(upload.write, block))
            return await self._runner.run("publishing an image", upload.publish, bound_s=self._runner.limits.sync_s)
        finally:
            # Also when cancelled: the thread does it although nobody waits.
            self._runner.post(upload.abort)

    async def fetch_image(self, *, digest: str, format: DiskFormat, size_bytes: int, read: ReadImage) -> ImageFile:
        checked_digest(digest)
        async with self._fetches.setdefault(digest, asyncio.Lock()):
            present = await self._kept(digest)
            if present is not None:
                return present
            take = partial(self._images.part, digest)
            async with self._runner.holding("beginning an image", take, tidy=_forget_empty) as held:
                expected = Expected(f"image {digest}", held.subject, size_bytes, digest)
                await receive(held, self._runner, expected, read)
                check = partial(_checked, digest=digest, image_format=format, size_bytes=size_bytes)
                image = await held.run("checking an image", check)
                await held.run(
                    "publishing an image",
                    partial(self._images.publish, digest=digest, image_format=format),
                    bound_s=self._runner.limits.sync_s,
                )
                return image

    async def read_image(self, *, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        checked_digest(digest)
        while True:
            read = partial(self._images.read, digest, offset=offset, length=CHUNK_BYTES)
            data = await self._runner.run("reading an image", read)
            if not data:
                return
            offset += len(data)
            yield data

    async def delete_image(self, *, digest: str) -> None:
        await self._runner.run("deleting an image", partial(self._images.delete, checked_digest(digest)))

    async def _kept(self, digest: str) -> ImageFile | None:
        return await self._runner.run("looking for an image", partial(self._images.keep, digest))

    async def _run_room(self, what: str, size_bytes: int) -> None:
        check = partial(self._runner.check_room, f"storing {what}", size_bytes)
        await self._runner.run("looking for room", check)


def _checked(path: Path, *, digest: str, image_format: DiskFormat, size_bytes: int) -> ImageFile:
    """The image, judged by its header. A file that is refused is deleted. Raises ImageRefused."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        virtual_bytes = check_image(head=head, declared=image_format, size_bytes=size_bytes)
    except ImageRefused:
        path.unlink(missing_ok=True)
        raise
    return ImageFile(digest=digest, size_bytes=size_bytes, virtual_size_bytes=virtual_bytes, format=image_format)


def _forget_empty(path: Path) -> None:
    """A lock on nothing needs no file."""
    try:
        if path.stat().st_size == 0:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
