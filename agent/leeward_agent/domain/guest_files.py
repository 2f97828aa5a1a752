"""Where the files of one guest are on this host."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GuestDisks:
    """The guest's disks in its pool, as this host sees them; all but the seed are qcow2.

    The guest sees them in this order: rescue, root, data, seed.
    """

    root: Path
    data: tuple[Path, ...] = ()
    seed: Path | None = None  # ISO 9660, read-only.
    rescue: Path | None = None  # Boots first, where it is.
    firmware_vars: Path | None = None  # Of a guest with UEFI.


@dataclass(frozen=True, slots=True)
class ConsoleFiles:
    """The guest's serial console on this host."""

    log: Path  # All that it writes is appended here.
    socket: Path  # Who connects reads what it writes from then on, and writes to it.
