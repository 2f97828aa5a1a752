"""Finding and killing guests by what the kernel says of processes. Needs neither libvirt, the agent nor the pools.

Never touches a path below a pool: the pool may hang. `readlink` of `/proc/PID/fd/N` only asks the kernel for a name.
Standard library only.
"""

import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Programs that write to a guest's disk, by the name of the process (15 characters at most) or of its executable.
GUEST_PROGRAMS = r"qemu-system-.*|qemu-kvm|kvm|qemu-nbd|qemu-storage-d.*"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that was sent SIGKILL and has not been seen to end. `pidfd` becomes readable when it has."""

    pid: int
    pidfd: int
    killed_s: float


@dataclass(frozen=True, slots=True)
class KillEvent:
    """One line of the guard's log: `kill` when the signal was sent, `gone` when the process had ended."""

    event: str
    pid: int
    at_s: float
    why: str = ""


class Killer:
    """Kills the guests below some directories, again and again, and knows when none is left."""

    def __init__(self, *, clock: Callable[[], float], programs: str = GUEST_PROGRAMS, proc: Path = PROC) -> None:
        self._clock = clock
        self._programs = re.compile(programs)
        self._proc = proc
        self._victims: dict[int, Victim] = {}

    @property
    def waiting_for_end(self) -> bool:
        """Whether a process that was killed has not ended yet."""
        return bool(self._victims)

    def sweep(self, roots: tuple[str, ...]) -> list[KillEvent]:
        """Kill every guest with a disk below `roots` that is there now. Answers what was done, in order."""
        events = []
        for pid in self._guest_processes():
            if pid in self._victims:
                continue
            with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
                event = self._kill_if_below(pid, roots)
                if event is not None:
                    events.append(event)
        return events + self.reap()

    def reap(self) -> list[KillEvent]:
        """Which of the killed processes have ended by now."""
        events = []
        for victim in list(self._victims.values()):
            if _has_ended(victim.pidfd):
                os.close(victim.pidfd)
                del self._victims[victim.pid]
                events.append(KillEvent("gone", victim.pid, self._clock()))
        return events

    def find(self, roots: tuple[str, ...]) -> list[int]:
        """The guests with a disk below `roots` that run now."""
        found = []
        for pid in self._guest_processes():
            with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
                if self._disk_below(pid, roots) is not None:
                    found.append(pid)
        return found

    def _kill_if_below(self, pid: int, roots: tuple[str, ...]) -> KillEvent | None:
        # The descriptor is taken first: if it still stands for a live process after what follows was read, then that
        # was read of the process which gets the signal, and of no later one with the same number.
        pidfd = os.pidfd_open(pid)
        kept = False
        try:
            why = self._disk_below(pid, roots)
            if why is None or _has_ended(pidfd):
                return None
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            now_s = self._clock()
            self._victims[pid] = Victim(pid, pidfd, now_s)
            kept = True
            return KillEvent("kill", pid, now_s, why)
        finally:
            if not kept:
                os.close(pidfd)

    def _guest_processes(self) -> Iterator[int]:
        for name in os.listdir(self._proc):
            if name.isdecimal() and self._is_guest(name):
                yield int(name)

    def _is_guest(self, pid: str) -> bool:
        folder = f"{self._proc}/{pid}"
        with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
            if self._programs.fullmatch(_read(f"{folder}/comm").decode(errors="replace").rstrip("\n")):
                return True
            program = os.readlink(f"{folder}/exe").removesuffix(" (deleted)")
            return self._programs.fullmatch(program.rpartition("/")[2]) is not None
        return False

    def _disk_below(self, pid: int, roots: tuple[str, ...]) -> str | None:
        """How the process is known to use a file below one of `roots`; None when it does not."""
        # Open files come first: to read the arguments the kernel may have to wait for the process's memory, which a
        # process that hangs on a dead pool may have locked.
        folder = f"{self._proc}/{pid}"
        prefixes = tuple(root + "/" for root in roots)
        for number in os.listdir(f"{folder}/fd"):
            with suppress(FileNotFoundError):
                if os.readlink(f"{folder}/fd/{number}").startswith(prefixes):
                    return "open file"
        if names_path_below(_read(f"{folder}/cmdline"), roots):
            return "argument"
        return None


def names_path_below(cmdline: bytes, roots: tuple[str, ...]) -> bool:
    """Whether QEMU's arguments name a path below one of `roots`: plain, in JSON, or with QEMU's doubled commas."""
    text = cmdline.replace(b"\\/", b"/").replace(b",,", b",")
    for root in roots:
        path = os.fsencode(root).replace(b",,", b",") + b"/"
        start = text.find(path)
        while start >= 0:
            # /pool must not be found in /other/pool.
            if start == 0 or not _continues_path(text[start - 1 : start]):
                return True
            start = text.find(path, start + 1)
    return False


def _continues_path(character: bytes) -> bool:
    return character.isalnum() or character in b"-_./" or character >= b"\x80"


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
