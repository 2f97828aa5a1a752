"""What the agent asks of a pool about images. `leeward_agent.storage.port.Pool` says what holds for all."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol, TypeAlias

from leeward.agent.types import DiskFormat, ImageFile

ReadImage: TypeAlias = Callable[[int], AsyncGenerator[bytes, None]]
"""Reads an image somewhere else, from an offset."""


class ImageStore(Protocol):
    """Images: immutable, named by the SHA-256 of their bytes."""

    async def store_image(
        self, *, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        """Keep an image; whole or not at all, durable when answered. `chunks` is not read when it is there already.

        Raises ImageRefused.
        """
        ...

    async def fetch_image(self, *, digest: str, format: DiskFormat, size_bytes: int, read: ReadImage) -> ImageFile:
        """As `store_image`, from another pool, and resumed where an earlier attempt was cut.

        `read` is not called when the image is there already. Raises StorageError (what came is not that image),
        ImageRefused (its header), and what `read` raises.
        """
        ...

    def read_image(self, *, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The image's bytes from `offset` in chunks of at most 1 MiB. Raises NotFound."""
        ...

    async def delete_image(self, *, digest: str) -> None:
        """Remove it; no error when absent. Raises FailedPrecondition while a disk is based on it."""
        ...
