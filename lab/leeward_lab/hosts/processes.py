"""Processes of the laboratory: started with a log, named by pid and start time, always with a bound on waiting.

A pid alone may mean another process by the time it is used; with the start time from /proc it cannot.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leeward_lab.guest.commands import LabError

# Every child that this process started and has not yet reaped, so that none stays a zombie and none is forgotten.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: its exit status and what it wrote."""

    command: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process, for as long as the machine is up: its pid and its start time in clock ticks since boot."""

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ProcessRef":
        """The process that has this pid now; `LabError` when there is none."""
        started = _started_ticks(pid)
        if started is None:
            raise LabError(f"there is no process {pid}")
        return cls(pid=pid, started_ticks=started)

    @classmethod
    def this(cls) -> "ProcessRef":
        """The calling process."""
        return cls.of(os.getpid())

    def alive(self) -> bool:
        """True until it has ended; a zombie has ended."""
        _reap(self.pid)
        return _started_ticks(self.pid) == self.started_ticks

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False when the process is gone already."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def ended(self, *, timeout_s: float) -> bool:
        """Wait until it has ended; False when it has not within `timeout_s`."""
        if not self.alive():
            return True
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            async with asyncio.timeout(timeout_s):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        _reap(self.pid)
        return True

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Ask with SIGTERM, then SIGKILL after `grace_s`. `LabError` when even that does not end it."""
        if not self.send(signal.SIGTERM) or await self.ended(timeout_s=grace_s):
            return
        self.send(signal.SIGKILL)
        if not await self.ended(timeout_s=10):
            raise LabError(f"process {self.pid} did not end after SIGKILL")

    async def kill(self) -> None:
        """SIGKILL, and wait until it has ended. `LabError` when it does not within 10 s."""
        self.send(signal.SIGKILL)
        if not await self.ended(timeout_s=10):
            raise LabError(f"process {self.pid} did not end after SIGKILL")


@dataclass(frozen=True, slots=True)
class Spawned:
    """A long-running program: its name, the process, and the file its output goes to."""

    name: str
    process: ProcessRef
    log: Path

    def tail(self, lines: int = 20) -> str:
        """The end of its log, for a message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def spawn(
    command: Sequence[str],
    *,
    name: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    dies_with_owner: bool = True,
    stdin: int = subprocess.DEVNULL,
) -> Spawned:
    """Start a program in a session of its own, its output appended to `log`, `env` added to the environment.

    With `dies_with_owner` the kernel kills it when the calling thread ends, even by SIGKILL. `LabError` when the
    program cannot be started.
    """
    words = list(command)
    if dies_with_owner:
        words = ["setpriv", "--pdeathsig", "KILL", "--", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                words,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise LabError(f"cannot start {name}: {error}") from error
    _children[child.pid] = child
    return Spawned(name=name, process=ProcessRef.of(child.pid), log=log)


async def run(
    command: Sequence[str], *, timeout_s: float = 30.0, stdin: bytes = b"", check: bool = True,
    env: Mapping[str, str] | None = None,
) -> Completed:  # fmt: skip
    """Run a program to its end. `LabError` when it takes too long and, with `check`, when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
    except OSError as error:
        raise LabError(f"cannot run {command[0]}: {error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError as error:
        raise LabError(f"`{' '.join(command)}` took longer than {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    returncode = await process.wait()
    done = Completed(tuple(command), returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "it printed nothing"
        raise LabError(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done


async def child_of(parent: ProcessRef, *, timeout_s: float = 5.0) -> ProcessRef:
    """The one child of a process that forks once, as `unshare --fork` and `nsenter --pid` do."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while parent.alive() and asyncio.get_running_loop().time() < deadline:
        child = _first_child(parent.pid)
        if child is not None:
            return child
        await asyncio.sleep(0.005)
    raise LabError(f"process {parent.pid} started nothing")


def _first_child(pid: int) -> ProcessRef | None:
    with contextlib.suppress(FileNotFoundError, LabError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return ProcessRef.of(int(children[0])) if children else None
    return None


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when the process is gone or only waits to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name, in brackets, may hold anything; the fields after it are plain.
    fields = status[status.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
