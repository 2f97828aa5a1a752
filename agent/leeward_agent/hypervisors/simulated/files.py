"""What a simulated guest leaves behind: lines on its disk, its memory in a file, and its console log.

They tell the same story as the laboratory's real guest: a line is printed only after it is on the disk. A host without
files keeps the same in memory, by the same paths.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from leeward.errors import HypervisorError, StorageError


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """What is left on a disk: how often a guest booted from it, and its last line."""

    boots: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class SavedMemory:
    """What a suspended guest remembers: which boot this is, and for how long it has been up."""

    boots: int
    uptime_s: float


class Traces(Protocol):
    """Where a host's guests leave things. All methods raise StorageError when it cannot be reached."""

    def read_record(self, disk: Path) -> DiskRecord:
        """What is on a disk; of a fresh one, zeros."""
        ...

    def write_record(self, disk: Path, record: DiskRecord) -> None:
        """Put it on the disk."""
        ...

    def say(self, log: Path, text: str) -> None:
        """Append to a console log."""
        ...

    def save(self, memory: Path, saved: SavedMemory) -> None:
        """Write a memory file."""
        ...

    def load(self, memory: Path) -> SavedMemory:
        """Read it. Raises HypervisorError when it is none."""
        ...


@dataclass(slots=True)
class MemoryTraces:
    """For hosts of one process. A memory file is known by its folder, so that the pool may rename it."""

    records: dict[Path, DiskRecord] = field(default_factory=dict)
    memories: dict[Path, SavedMemory] = field(default_factory=dict)

    def read_record(self, disk: Path) -> DiskRecord:
        """What is on a disk; of a fresh one, zeros."""
        return self.records.get(disk, DiskRecord())

    def write_record(self, disk: Path, record: DiskRecord) -> None:
        """Put it on the disk."""
        self.records[disk] = record

    def say(self, log: Path, text: str) -> None:
        """Consoles are not kept."""

    def save(self, memory: Path, saved: SavedMemory) -> None:
        """Keep it."""
        self.memories[memory.parent] = saved

    def load(self, memory: Path) -> SavedMemory:
        """What was kept. Raises HypervisorError when nothing was."""
        try:
            return self.memories[memory.parent]
        except KeyError as error:
            raise HypervisorError(f"{memory} holds no memory of a guest") from error


class FileTraces:
    """Files beside the guest's disk. A guest whose folder is not there leaves nothing."""

    def read_record(self, disk: Path) -> DiskRecord:
        """The record beside a disk; of a fresh disk, zeros. Raises StorageError."""
        return read_record(disk)

    def write_record(self, disk: Path, record: DiskRecord) -> None:
        """Replace the record beside a disk. Raises StorageError."""
        _write(record_path(disk), asdict(record))

    def say(self, log: Path, text: str) -> None:
        """Append to a console log. Raises StorageError."""
        try:
            with log.open("a") as console:
                console.write(text)
        except OSError as error:
            raise StorageError(f"{log} cannot be written: {error}") from error

    def save(self, memory: Path, saved: SavedMemory) -> None:
        """Write a memory file. Raises StorageError."""
        _write(memory, asdict(saved))

    def load(self, memory: Path) -> SavedMemory:
        """Read it. Raises HypervisorError when it is none."""
        try:
            fields = json.loads(memory.read_text())
            return SavedMemory(boots=int(fields["boots"]), uptime_s=float(fields["uptime_s"]))
        except (OSError, ValueError, KeyError) as error:
            raise HypervisorError(f"{memory} holds no memory of a guest: {error!r}") from error


def record_path(disk: Path) -> Path:
    """The file beside a disk that stands for the guest's own data on it."""
    return disk.with_name(disk.name + ".record")


def read_record(disk: Path) -> DiskRecord:
    """The record beside a disk; of a fresh disk, zeros. Raises StorageError."""
    try:
        fields = json.loads(record_path(disk).read_text())
        return DiskRecord(boots=int(fields["boots"]), lines=int(fields["lines"]))
    except FileNotFoundError:
        return DiskRecord()
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"the record of {disk} cannot be read: {error!r}") from error


def _write(path: Path, fields: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps(fields))
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
