"""Images of the in-memory twin."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

from leeward.agent.types import DiskFormat, ImageFile
from leeward.errors import FailedPrecondition, ImageRefused, NotFound
from leeward_agent.storage.image_format import HEAD_BYTES, check_image
from leeward_agent.storage.memory_contents import CHUNK_BYTES, MemoryParts
from leeward_agent.storage.names import checked_digest
from leeward_agent.storage.port_images import ReadImage


class MemoryImages(MemoryParts):
    """The port `leeward_agent.storage.port_images.ImageStore` says what each method promises."""

    async def store_image(
        self, *, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        checked_digest(digest)
        await self._reach("store_image")
        present = self._kept(digest)
        if present is not None:
            return present
        data = b""
        async for chunk in chunks:
            data += chunk
            if len(data) > size_bytes:
                raise ImageRefused(f"more than the declared {size_bytes} bytes came")
        if len(data) != size_bytes:
            raise ImageRefused(f"{len(data)} bytes came, {size_bytes} were declared")
        virtual = check_image(head=data[:HEAD_BYTES], declared=format, size_bytes=size_bytes)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ImageRefused(f"the bytes have the SHA-256 {found}, not the declared {digest}")
        await self._reach("publish_image")
        return self._publish(ImageFile(digest, size_bytes, virtual, format), data)

    async def fetch_image(self, *, digest: str, format: DiskFormat, size_bytes: int, read: ReadImage) -> ImageFile:
        checked_digest(digest)
        await self._reach("fetch_image")
        present = self._kept(digest)
        if present is not None:
            return present
        data = await self._receive(f"image {digest}", size_bytes=size_bytes, sha256=digest, read=read)
        try:
            virtual = check_image(head=data[:HEAD_BYTES], declared=format, size_bytes=size_bytes)
        except ImageRefused:
            self._forget_parts(f"image {digest}")
            raise
        await self._reach("publish_image")
        self._forget_parts(f"image {digest}")
        return self._publish(ImageFile(digest, size_bytes, virtual, format), data)

    async def read_image(self, *, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        checked_digest(digest)
        while True:
            await self._reach("read_image")
            content = self._contents.image_bytes.get(digest)
            if content is None:
                raise NotFound.named(f"image {digest} in pool {self.pool_id}")
            data = content[offset : offset + CHUNK_BYTES]
            if not data:
                return
            offset += len(data)
            yield data

    async def delete_image(self, *, digest: str) -> None:
        checked_digest(digest)
        await self._reach("delete_image")
        users = self._users(digest)
        if users:
            raise FailedPrecondition(
                f"image {digest} in pool {self.pool_id} is in use: {len(users)} disks are based on it",
                metadata={"digest": digest, "users": str(len(users))},
            )
        self._contents.images.pop(digest, None)
        self._contents.image_bytes.pop(digest, None)
        self._contents.changed_s.pop(digest, None)

    def _kept(self, digest: str) -> ImageFile | None:
        present = self._contents.images.get(digest)
        if present is not None:
            self._touch(digest)
        return present

    def _publish(self, image: ImageFile, data: bytes) -> ImageFile:
        self._contents.images[image.digest] = image
        self._contents.image_bytes[image.digest] = data
        self._touch(image.digest)
        return image
