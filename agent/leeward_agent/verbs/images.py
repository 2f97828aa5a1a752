"""Images in this host's pools."""

from collections.abc import AsyncGenerator, AsyncIterator

from leeward.agent.types import DiskFormat, ImageFile
from leeward.errors import InvalidArgument
from leeward_agent.verbs.base import Verbs


class ImageVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def store_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        return await self._pool(pool_id).store_image(digest=digest, format=format, size_bytes=size_bytes, chunks=chunks)

    async def read_image(self, *, pool_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        if offset < 0:
            raise InvalidArgument.field("offset", "must not be negative")
        async for chunk in self._pool(pool_id).read_image(digest=digest, offset=offset):
            yield chunk

    async def delete_image(self, *, pool_id: str, digest: str) -> None:
        await self._pool(pool_id).delete_image(digest=digest)
