"""Pools for contract tests: what is put into them, and how they are looked at."""

import hashlib
import random
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from leeward.agent.types import DiskFormat, GuestSpec, ImageFile
from leeward.clock import RandomIds, SystemClock
from leeward_agent.storage.directory import DirectoryPool
from leeward_agent.storage.memory import MemoryPool, MemoryPoolContents
from leeward_agent.storage.port import Pool

IDS = RandomIds()
BYTES = random.Random(1).randbytes(3 * 1024**2)
DIGEST = hashlib.sha256(BYTES).hexdigest()
MIB = 1024**2


async def chunked(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def store(
    pool: Pool, data: bytes = BYTES, *, digest: str = "", image_format: DiskFormat = DiskFormat.RAW, size: int = -1
) -> ImageFile:
    return await pool.store_image(
        digest=digest or hashlib.sha256(data).hexdigest(),
        format=image_format,
        size_bytes=len(data) if size < 0 else size,
        chunks=chunked(data),
    )


async def read(pool: Pool, digest: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in pool.read_image(digest=digest, offset=offset)])


def guest(uid: str = "guest-1", *, disk_gib: int = 1, digest: str = DIGEST) -> GuestSpec:
    return GuestSpec(
        uid=uid,
        name="web",
        vcpus=1,
        memory_mib=128,
        disk_gib=disk_gib,
        pool_id="",
        image_digest=digest,
        image_format=DiskFormat.RAW,
        run_epoch=1,
    )


def listing(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))


def qemu_img(*arguments: str) -> bytes:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=30).stdout


@asynccontextmanager
async def one_pool_twice(kind: str, path: Path) -> AsyncGenerator[tuple[Pool, Pool], None]:
    """A new pool, "directory" or "memory", as two nodes see it."""
    pools: tuple[Pool, Pool]
    if kind == "directory":
        await DirectoryPool.create(path, IDS)
        pools = (await DirectoryPool.open(path, IDS), await DirectoryPool.open(path, IDS))
    else:
        contents = MemoryPoolContents(pool_id=IDS.new())
        pools = (
            MemoryPool(contents, SystemClock(), node="node-a"),
            MemoryPool(contents, SystemClock(), node="node-b"),
        )
    try:
        yield pools
    finally:
        for pool in pools:
            await pool.close()
