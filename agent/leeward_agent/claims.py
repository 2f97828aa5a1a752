"""The highest revision that callers have shown for each guest: the agent's memory of what has been overtaken."""

import asyncio
from pathlib import Path

from leeward.clock import Ids
from leeward.errors import StorageError
from leeward_agent.storage.files import replace_durably
from leeward_agent.storage.names import checked_uid


class MemoryClaims:
    """Claims that end with the process, for tests and simulation."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}

    async def highest(self, uid: str) -> int:
        return self._revisions.get(uid, 0)

    async def record(self, uid: str, revision: int) -> None:
        self._revisions[uid] = revision


class FileClaims:
    """One small file a guest in the agent's state directory, replaced whole and durably.

    A file stays when its guest has left, since a superseded caller may still turn up; it is a few bytes.
    """

    def __init__(self, directory: Path, *, ids: Ids) -> None:
        self._directory = directory
        self._ids = ids

    async def highest(self, uid: str) -> int:
        path = self._directory / checked_uid(uid)
        return await asyncio.to_thread(_read, path)

    async def record(self, uid: str, revision: int) -> None:
        path = self._directory / checked_uid(uid)
        await asyncio.to_thread(_write, path, revision, self._ids.new())


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the claim in {path}: {error}") from error


def _write(path: Path, revision: int, token: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_durably(path, str(revision).encode(), token=token)
    except OSError as error:
        raise StorageError(f"cannot keep the claim in {path}: {error}") from error
