"""Files that come from another host in many pieces, and go on where an earlier attempt was cut."""

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from leeward.errors import StorageError
from leeward_agent.storage.base import in_blocks
from leeward_agent.storage.bulk import Digest, digest_part, write_part
from leeward_agent.storage.files import sync_file
from leeward_agent.storage.running import Held, PoolRunner

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Expected:
    """What is coming: where it is put, and how it will be known to be whole."""

    what: str
    path: Path
    size_bytes: int
    sha256: str


async def receive(
    held: Held[T],
    runner: PoolRunner,
    expected: Expected,
    read: Callable[[int], AsyncGenerator[bytes, None]],
) -> None:
    """Have the file at `expected.path`, whole, verified and durable; what is there already is not asked for again.

    Raises StorageError when it is not what was expected: what has come is then deleted, if its bytes were wrong, so
    that the next attempt begins anew, and kept if only some are missing.
    """
    path, digest = expected.path, hashlib.sha256()
    offset = await held.do(f"looking at {expected.what}", partial(_present_bytes, expected))
    room = partial(runner.check_room, f"receiving {expected.what}", expected.size_bytes - offset)
    await held.do(f"receiving {expected.what}", room)
    position = 0
    while position < offset:
        part = partial(digest_part, path, digest, position, end=offset)
        position = await held.do(f"reading {expected.what}", part)
    if offset < expected.size_bytes:
        await _receive_rest(held, expected, read, offset, digest)
    if digest.hexdigest() != expected.sha256:
        await held.do(f"deleting {expected.what}", partial(path.unlink, missing_ok=True))
        raise StorageError(f"{expected.what}: what came has the SHA-256 {digest.hexdigest()}, not {expected.sha256}")
    await held.do(f"finishing {expected.what}", partial(sync_file, path), bound_s=runner.limits.sync_s)


async def _receive_rest(
    held: Held[T],
    expected: Expected,
    read: Callable[[int], AsyncGenerator[bytes, None]],
    offset: int,
    digest: Digest,
) -> None:
    async with aclosing(read(offset)) as chunks, aclosing(in_blocks(chunks)) as blocks:
        async for block in blocks:
            if offset + len(block) > expected.size_bytes:
                await held.do(f"deleting {expected.what}", partial(expected.path.unlink, missing_ok=True))
                raise StorageError(f"{expected.what}: more than the expected {expected.size_bytes} bytes came")
            await held.do(f"writing {expected.what}", partial(write_part, expected.path, block, offset))
            digest.update(block)
            offset += len(block)
    if offset != expected.size_bytes:
        raise StorageError(f"{expected.what}: it ended after {offset} of {expected.size_bytes} bytes")


def _present_bytes(expected: Expected) -> int:
    """How much is there; what cannot be a part of it is deleted."""
    try:
        present_bytes = expected.path.stat().st_size
    except FileNotFoundError:
        present_bytes = -1
    if present_bytes > expected.size_bytes:
        expected.path.unlink()
        present_bytes = -1
    if present_bytes < 0:
        expected.path.touch(mode=0o600)
        return 0
    return present_bytes
