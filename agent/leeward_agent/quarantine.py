"""Where leftovers are kept aside: guests that this host held although the right to run them had moved to another."""

import asyncio
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import structlog

from leeward.agent.types import PutAside
from leeward.clock import Ids
from leeward.errors import StorageError
from leeward_agent.storage.files import replace_durably
from leeward_agent.storage.names import checked_uid

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A guest that this host held without the right to run it, as it was found."""

    uid: str
    name: str
    state: str
    run_epoch: int
    holder: str
    holder_epoch: int
    found_at: str

    def told(self) -> PutAside:
        """The same, as an inventory tells it. Raises ValueError when its time is none."""
        return PutAside(self.uid, self.name, self.run_epoch, self.holder, datetime.fromisoformat(self.found_at))


class Quarantine(Protocol):
    """Where leftovers are kept aside."""

    async def keep(self, leftover: Leftover, definition: str) -> None:
        """Keep a note of it and its last definition. Raises StorageError."""
        ...

    async def kept(self) -> tuple[PutAside, ...]:
        """All that was kept, by uid. Raises StorageError."""
        ...


class DirectoryQuarantine:
    """A note and the last definition of each leftover, in the agent's state directory, for people.

    Nothing here is ever deleted by the agent.
    """

    def __init__(self, directory: Path, *, ids: Ids) -> None:
        self._directory = directory
        self._ids = ids

    async def keep(self, leftover: Leftover, definition: str) -> None:
        """Write both, durably. Raises StorageError."""
        await asyncio.to_thread(self._write, leftover, definition)

    async def kept(self) -> tuple[PutAside, ...]:
        """Read all notes; one that people have spoiled is left out. Raises StorageError."""
        return await asyncio.to_thread(self._read)

    def _write(self, leftover: Leftover, definition: str) -> None:
        stem = f"{checked_uid(leftover.uid)}-{leftover.run_epoch}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if definition:
                replace_durably(self._directory / f"{stem}.xml", definition.encode(), token=self._ids.new())
            note = json.dumps(asdict(leftover), indent=2).encode()
            replace_durably(self._directory / f"{stem}.json", note, token=self._ids.new())
        except OSError as error:
            raise StorageError(f"cannot keep a leftover aside in {self._directory}: {error}") from error

    def _read(self) -> tuple[PutAside, ...]:
        try:
            notes = {path.name: path.read_bytes() for path in sorted(self._directory.glob("*.json"))}
        except OSError as error:
            raise StorageError(f"cannot read what was kept aside in {self._directory}: {error}") from error
        found = []
        for name, note in notes.items():
            try:
                fields: dict[str, Any] = json.loads(note)
                found.append(Leftover(**fields).told())
            except (ValueError, TypeError) as error:
                _log.warning("a note of a leftover cannot be read", note=name, error=str(error))
        return tuple(found)
