"""All guests' folders in a pool, for inventories. Blocking: for worker threads only."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leeward_agent.storage.layout import INCOMING
from leeward_agent.storage.names import is_uid


@dataclass(frozen=True, slots=True)
class ListedFolder:
    """One guest's folder as it is; `age_s` since a file was made or removed in it."""

    uid: str
    files: tuple[str, ...]
    age_s: float


def list_folders(instances: Path, *, now: Callable[[], float]) -> list[ListedFolder]:
    """In order of uid. `now` is asked once, for the clock that stamps these folders."""
    time = now()
    found = []
    for uid in sorted(name for name in os.listdir(instances) if is_uid(name)):
        with suppress(FileNotFoundError):  # It is being deleted.
            changed = (instances / uid).stat().st_mtime
            names = (name for name in os.listdir(instances / uid) if name == INCOMING or not name.startswith("."))
            found.append(ListedFolder(uid, tuple(sorted(names)), max(0.0, time - changed)))
    return found
