"""How long after its deadline the guard needs until the last guest is dead, which the proof by silence rests on."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.numbers import median
from bench.report import Result
from leeward_agent.guard.client import SocketGuardClient
from leeward_agent.guard.port import Vouch
from leeward_agent.guard.protocol import KILL_BOUND_S, boottime_s
from leeward_lab.hosts.waiting import until

GUESTS = 100
ROUNDS = 5
_TTL_S = 3.0
_BOUND_S = 20.0


async def measure(directory: Path) -> Result:
    """A guard's process and processes that look like guests; in each round nobody vouches any more."""
    result = Result(
        "guard",
        f"{GUESTS} processes named as QEMU, each with a file on the shared pool open, and the guard's own process. "
        f"From the deadline to the end of the last process, as the kernel tells the guard; {ROUNDS} rounds. Real "
        "guests take longer to end by the time in which the kernel frees their memory.",
    )
    await asyncio.to_thread(directory.mkdir)
    taken_s = [await _round(directory / str(number)) for number in range(ROUNDS)]
    result.add("deadline to last guest dead, median", 1000 * median(taken_s), "ms")
    result.add("deadline to last guest dead, longest", 1000 * max(taken_s), "ms", at_most=1000 * KILL_BOUND_S)
    return result


async def _round(directory: Path) -> float:
    pool, log = directory / "pool", directory / "guard.jsonl"
    await asyncio.to_thread(pool.mkdir, parents=True)
    with _guard(directory, log), _guests(directory, pool):
        await until(lambda: _has(log, "ready", 1), what="the guard", timeout_s=_BOUND_S)
        guard = SocketGuardClient(directory / "guard.sock")
        try:
            now_s = boottime_s()
            status = await guard.arm(
                Vouch(since_s=now_s, deadline_s=now_s + _TTL_S, ttl_s=_TTL_S, roots=(pool,)),
            )
            await until(lambda: _has(log, "gone", GUESTS), what="the guests' end", timeout_s=_BOUND_S)
        finally:
            await guard.close()
    return float(max(event["at_s"] for event in _events(log) if event["event"] == "gone") - status.deadline_s)


@contextmanager
def _guard(directory: Path, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "leeward_agent.guard.main", "--log", str(log)]
    command += ["--socket", str(directory / "guard.sock"), "--state", str(directory / "guard.json")]
    with _ended_at_last([subprocess.Popen(command)]):
        yield


@contextmanager
def _guests(directory: Path, pool: Path) -> Iterator[None]:
    program = directory / "qemu-system-x86_64"
    program.symlink_to("/usr/bin/tail")
    processes: list[subprocess.Popen[bytes]] = []
    with _ended_at_last(processes):
        for number in range(GUESTS):
            disk = pool / f"{number}.qcow2"
            disk.touch()
            processes.append(subprocess.Popen([str(program), "-f", str(disk)]))
        yield


@contextmanager
def _ended_at_last(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


async def _has(log: Path, event: str, count: int) -> bool:
    found = [each for each in await asyncio.to_thread(_events, log) if each["event"] == event]
    return len(found) >= count


def _events(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
