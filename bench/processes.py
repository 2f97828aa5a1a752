"""The processor time that a process has used."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Processor time that the whole machine has spent on anything but idling (proc(5), stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts, stolen = fields[:8]
    return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICKS_PER_S


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far (proc(5), fields 14 and 15 of stat)."""
    status = Path(f"/proc/{pid}/stat").read_text()
    fields = status[status.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
