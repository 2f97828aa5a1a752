"""The files of a simulated guest: a console that ticks, and what its disk remembers.

They tell the same story as the laboratory's real guest: a line is printed only after it is on the disk.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from leeward.errors import StorageError


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """What is left on a disk: how often a guest booted from it, and its last line."""

    boots: int = 0
    lines: int = 0


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


def boot(disk: Path, console_log: Path) -> DiskRecord:
    """Count a boot, and say so on the console. Raises StorageError."""
    before = read_record(disk)
    record = DiskRecord(boots=before.boots + 1, lines=before.lines)
    _write(disk, record)
    _say(console_log, f"boot {record.boots} line={record.lines} uptime=0.00")
    return record


def tick(disk: Path, console_log: Path, *, uptime_s: float) -> DiskRecord:
    """Write one line to the disk, then print it. Raises StorageError."""
    before = read_record(disk)
    record = DiskRecord(boots=before.boots, lines=before.lines + 1)
    _write(disk, record)
    _say(console_log, f"tick boot={record.boots} line={record.lines} uptime={uptime_s:.2f}")
    return record


def _write(disk: Path, record: DiskRecord) -> None:
    path = record_path(disk)
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps({"boots": record.boots, "lines": record.lines}))
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{disk} cannot be written: {error}") from error


def _say(console_log: Path, line: str) -> None:
    try:
        with console_log.open("a") as console:
            console.write(f"leeward-guest: {line}\n")
    except OSError as error:
        raise StorageError(f"{console_log} cannot be written: {error}") from error
