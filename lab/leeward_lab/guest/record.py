"""Reading back what the guest wrote: its record on the disk, and the lines on its console.

The guest acknowledges a line on the console only after the record is durable, so `GuestRecord.line` of a disk is never
less than the last `Tick.line` seen on the console, whatever was cut off in between.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leeward_lab.guest.commands import LabError, run_tool
from leeward_lab.guest.disk import DATA_PARTITION_BYTES, SECTOR_BYTES, data_start_bytes

_RECORD = re.compile(rb"leeward-guest v1 boot=(\d+)(?: line=(\d+) uptime=([\d.]+) clock=(\d+))?\s*\n")
_BOOT = re.compile(r"^leeward-guest: boot (\d+) line=(\d+) uptime=([\d.]+)", re.MULTILINE)
_TICK = re.compile(r"^leeward-guest: tick boot=(\d+) line=(\d+) uptime=([\d.]+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Tick:
    """One line: the boot it belongs to, its number (counted over all boots), and seconds since that boot.

    On the disk it has the time of the machine's clock, too, in whole seconds; on the console that is 0.
    """

    boot: int
    line: int
    uptime_s: float
    clock_s: int = 0


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """What a disk holds: how often it booted, its last line, and the last few hundred lines in order."""

    boots: int
    lines: int
    history: tuple[Tick, ...]

    def missing(self) -> tuple[int, ...]:
        """Line numbers lost between the first and the last line of the history; empty on a healthy disk."""
        present = {tick.line for tick in self.history}
        return tuple(line for line in range(min(present, default=0), self.lines) if line not in present)

    def overlapping(self) -> tuple[Tick, ...]:
        """Lines that a boot wrote although a later one had begun to write; empty unless two guests ran at once."""
        began_s: dict[int, int] = {}
        for tick in self.history:
            began_s[tick.boot] = min(tick.clock_s, began_s.get(tick.boot, tick.clock_s))
        return tuple(
            tick
            for tick in self.history
            if any(boot > tick.boot and at_s <= tick.clock_s for boot, at_s in began_s.items())
        )


def read_guest_record(disk_path: Path, *, disk_format: Literal["qcow2", "raw"] = "qcow2") -> GuestRecord:
    """The record on a guest's disk, running or not, with its backing files.

    Of a running guest it is a recent state; of a stopped one it is exact. Raises `LabError` when the file cannot be
    read or is not a disk made by this module.
    """
    start = data_start_bytes(_read(disk_path, disk_format, offset=0, size=SECTOR_BYTES))
    data = _read(disk_path, disk_format, offset=start, size=DATA_PARTITION_BYTES)
    boots = 0
    ticks: list[Tick] = []
    for boot, line, uptime, clock in _RECORD.findall(data):
        boots = max(boots, int(boot))
        if line:
            ticks.append(Tick(boot=int(boot), line=int(line), uptime_s=float(uptime), clock_s=int(clock)))
    ticks.sort(key=lambda tick: (tick.line, tick.boot))
    return GuestRecord(boots=boots, lines=ticks[-1].line if ticks else 0, history=tuple(ticks))


def ticks_in(console: str) -> list[Tick]:
    """Every complete tick on a console, in the order printed; a line cut off in the middle is not one."""
    complete = console[: console.rfind("\n") + 1]
    found = _TICK.findall(complete)
    return [Tick(boot=int(boot), line=int(line), uptime_s=float(uptime)) for boot, line, uptime in found]


def boots_in(console: str) -> list[int]:
    """The boot numbers a console shows, in order."""
    return [int(boot) for boot, _, _ in _BOOT.findall(console)]


def _read(disk_path: Path, disk_format: str, *, offset: int, size: int) -> bytes:
    """Bytes of the disk as its guest sees them; `-U` reads beside a running QEMU that holds the lock."""
    if offset % SECTOR_BYTES or size % SECTOR_BYTES:
        raise LabError(f"offset {offset} and size {size} must be whole sectors")
    with tempfile.TemporaryDirectory() as directory:
        part = Path(directory) / "part"
        run_tool(
            ["qemu-img", "dd", "-U", "-f", disk_format, "-O", "raw", f"bs={SECTOR_BYTES}",
             f"skip={offset // SECTOR_BYTES}", f"count={(offset + size) // SECTOR_BYTES}",
             f"if={disk_path}", f"of={part}"],
            timeout_s=30,
        )  # fmt: skip
        # Releases differ in whether `count` includes what is skipped.
        return part.read_bytes()[:size]
