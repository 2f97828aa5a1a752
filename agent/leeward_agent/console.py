"""A guest's serial console log: reading it, and deleting it with the guest."""

import asyncio
from pathlib import Path

from leeward.agent.types import ConsoleChunk
from leeward.errors import NotFound, StorageError
from leeward_agent.storage.names import checked_uid

MAX_CHUNK_BYTES = 1024 * 1024


def log_path(directory: Path, uid: str) -> Path:
    """Where the hypervisor appends what the guest writes to its serial console."""
    return directory / f"{checked_uid(uid)}.log"


async def read(directory: Path, uid: str, *, offset: int, limit_bytes: int) -> ConsoleChunk:
    """Up to `limit_bytes` (0: as much as one answer holds) from `offset`; a negative one counts from the end.

    Raises NotFound when the guest never ran here, StorageError.
    """
    limit = min(limit_bytes, MAX_CHUNK_BYTES) if limit_bytes > 0 else MAX_CHUNK_BYTES
    return await asyncio.to_thread(_read, log_path(directory, uid), uid, offset, limit)


def _read(path: Path, uid: str, offset: int, limit: int) -> ConsoleChunk:
    try:
        with path.open("rb") as log:
            end = log.seek(0, 2)
            start = max(0, end + offset) if offset < 0 else min(offset, end)
            log.seek(start)
            data = log.read(min(limit, end - start))
    except FileNotFoundError as error:
        raise NotFound(f"guest {uid} has no console log on this host") from error
    except OSError as error:
        raise StorageError(f"cannot read the console log of guest {uid}: {error}") from error
    return ConsoleChunk(data=data, next_offset=start + len(data), end_offset=end)


async def remove(directory: Path, uid: str) -> None:
    """Delete the log, if there is one on this host. Raises StorageError."""
    path = log_path(directory, uid)
    try:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete the console log of guest {uid}: {error}") from error
