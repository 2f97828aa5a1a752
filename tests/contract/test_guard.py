"""The guard as it runs on a host: its own process, real guests' processes (by name), real kills."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from leeward.errors import FailedPrecondition, InvalidArgument, Unavailable
from leeward_agent.guard.client import SocketGuardClient
from leeward_agent.guard.core import Guard
from leeward_agent.guard.kill import Killer, KillEvent, names_path_below
from leeward_agent.guard.port import Vouch
from leeward_agent.guard.protocol import Arm, boottime_s, decode_answer, encode_request
from leeward_agent.guard.watchdog import Watchdog

TTL_S = 1.5
SLACK_S = 1.0  # What the guard promises (KILL_BOUND_S).
_GUEST = (
    "import sys, time; held = [open(path, 'rb') for path in sys.argv[2:]]; print('up', flush=True); time.sleep(600)"
)
_AGENT = """
import asyncio, sys
from pathlib import Path
from leeward_agent.guard.client import SocketGuardClient
from leeward_agent.guard.port import Vouch
from leeward_agent.guard.protocol import boottime_s

async def main():
    guard, since_s = SocketGuardClient(Path(sys.argv[1])), boottime_s()
    while True:
        now_s = boottime_s()
        await guard.arm(Vouch(since_s=since_s, deadline_s=now_s + 2.0, ttl_s=2.0, roots=(Path(sys.argv[2]),)))
        print("armed", flush=True)
        await asyncio.sleep(0.1)

asyncio.run(main())
"""


class Lab:
    """A directory with pools, a guard, and processes that look like guests; nothing of it outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "guard.sock"
        self.log = folder / "guard.log"
        self.pool = folder / "pool"
        self.local = folder / "pool-local"
        for root in (self.pool, self.local):
            root.mkdir()
            (root / "root.qcow2").touch()
        (folder / "qemu-system-x86_64").symlink_to(os.path.realpath(sys.executable))
        self.processes: list[subprocess.Popen[str]] = []
        self.guard: subprocess.Popen[str] | None = None

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    def launch(self, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, text=True)
        self.processes.append(process)
        return process

    def guest(self, argument: str, *opened: Path, program: str = "qemu-system-x86_64") -> subprocess.Popen[str]:
        path = str(self.folder / program) if program.startswith("qemu") else program
        return self.start(path, "-c", _GUEST, argument, *map(str, opened))

    def guest_on(self, root: Path) -> subprocess.Popen[str]:
        return self.guest(json.dumps({"driver": "file", "filename": f"{root}/root.qcow2"}))

    def late_guest(self) -> subprocess.Popen[str]:
        """One on the shared pool that may be killed before it says anything."""
        program = str(self.folder / "qemu-system-x86_64")
        return self.launch([program, "-c", "import time; time.sleep(600)", str(self.pool / "root.qcow2")])

    async def start_guard(self, *options: str) -> SocketGuardClient:
        command = [sys.executable, "-m", "leeward_agent.guard.main", "--socket", str(self.socket)]
        command += ["--state", str(self.folder / "state"), "--log", str(self.log), *options]
        ready = self.count("ready")
        self.guard = self.launch(command)
        await until(lambda: self.count("ready") > ready)
        return SocketGuardClient(self.socket)

    def end_guard(self, how: signal.Signals) -> None:
        assert self.guard is not None
        self.guard.send_signal(how)
        self.guard.wait(10)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def count(self, event: str) -> int:
        return sum(line["event"] == event for line in self.events())

    def vouch(self, *, since_s: float | None = None, ttl_s: float = TTL_S) -> Vouch:
        now_s = boottime_s()
        since_s = now_s if since_s is None else since_s
        return Vouch(since_s=since_s, deadline_s=now_s + ttl_s, ttl_s=ttl_s, roots=(self.pool,))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


async def until(condition: Callable[[], bool], *, bound_s: float = 15.0) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes.
            await asyncio.sleep(0.005)


@asynccontextmanager
async def vouching(lab: Lab, client: SocketGuardClient) -> AsyncIterator[None]:
    """An agent that is well: it vouches without a gap, whatever the guard does."""
    since_s = boottime_s()

    async def vouch() -> None:
        while True:
            with suppress(Unavailable):
                await client.arm(lab.vouch(since_s=since_s))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(vouch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await client.close()


async def test_at_the_deadline_guests_on_shared_pools_die_and_nothing_else(lab: Lab) -> None:
    client = await lab.start_guard()
    disk = lab.pool / "root.qcow2"
    doomed = [
        lab.guest(json.dumps({"driver": "file", "filename": str(disk)})),
        lab.guest(json.dumps({"filename": str(disk)}).replace("/", "\\/")),
        lab.guest(f"file={disk},if=virtio"),
        lab.guest("nothing in the arguments but open", disk),
    ]
    spared = [
        lab.guest_on(lab.local),
        lab.guest(f"file=/other{disk}"),
        lab.guest(str(lab.pool) + "-other/root.qcow2"),
        lab.guest(str(disk), disk, program=sys.executable),
    ]
    assert not (await client.status()).armed
    status = await client.arm(lab.vouch())
    assert status.armed
    assert not status.expired
    assert all(process.poll() is None for process in doomed + spared)
    await until(lambda: lab.count("gone") == len(doomed))
    assert [process.wait(5) for process in doomed] == [-signal.SIGKILL] * len(doomed)
    assert all(process.poll() is None for process in spared)
    kills = [event for event in lab.events() if event["event"] == "kill"]
    assert {event["pid"] for event in kills} == {process.pid for process in doomed}
    assert all(0 <= event["at_s"] - status.deadline_s < SLACK_S for event in kills)
    assert (await client.status()).expired
    # What starts while nobody vouches dies; what starts afterwards lives.
    assert await asyncio.to_thread(lab.late_guest().wait, 10) == -signal.SIGKILL
    async with vouching(lab, client):
        await until(lambda: lab.count("vouched_again") == 1)
        alive = lab.guest_on(lab.pool)
        await asyncio.sleep(2 * TTL_S)
        assert alive.poll() is None


async def test_an_agent_that_stops_is_not_waited_for(lab: Lab) -> None:
    await lab.start_guard()
    for how in (signal.SIGSTOP, signal.SIGKILL):
        killed = lab.count("kill")
        agent = lab.start(sys.executable, "-c", _AGENT, str(lab.socket), str(lab.pool))
        guest = lab.guest_on(lab.pool)
        await asyncio.sleep(2.5)
        assert guest.poll() is None
        agent.send_signal(how)
        assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL
        agent.kill()
        assert lab.count("kill") == killed + 1


async def test_a_deadline_never_moves_back_and_roots_are_not_forgotten(lab: Lab) -> None:
    client = await lab.start_guard()
    first = await client.arm(lab.vouch(ttl_s=2.0))
    now_s = boottime_s()
    second = await client.arm(Vouch(since_s=now_s, deadline_s=now_s + 0.1, ttl_s=0.1, roots=()))
    assert second.deadline_s == first.deadline_s
    guest = lab.guest_on(lab.pool)
    assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL
    await until(lambda: lab.count("kill") == 1)
    assert next(event for event in lab.events() if event["event"] == "kill")["at_s"] >= first.deadline_s


async def test_a_restarted_guard_keeps_the_deadline(lab: Lab) -> None:
    client = await lab.start_guard()
    guest = lab.guest_on(lab.pool)
    armed = await client.arm(lab.vouch(ttl_s=3.0))
    lab.end_guard(signal.SIGKILL)
    with pytest.raises(Unavailable):
        await client.status()
    await lab.start_guard()
    status = await client.status()
    assert (status.armed, status.deadline_s) == (True, armed.deadline_s)
    assert guest.poll() is None
    assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL
    assert next(event for event in lab.events() if event["event"] == "kill")["at_s"] >= armed.deadline_s


async def test_a_guard_that_was_down_past_its_deadline_asks_before_it_kills(lab: Lab) -> None:
    client = await lab.start_guard()
    guest = lab.guest_on(lab.pool)
    async with vouching(lab, client):
        await until(lambda: lab.count("armed") == 1)
        lab.end_guard(signal.SIGKILL)
        await asyncio.sleep(2 * TTL_S)
        await lab.start_guard("--restart-grace", "1.5")
        await asyncio.sleep(2.5)
        assert guest.poll() is None
        lab.end_guard(signal.SIGKILL)
    await asyncio.sleep(2 * TTL_S)
    # Now no agent answers for the time in between.
    await lab.start_guard("--restart-grace", "0.5")
    assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL


async def test_a_guard_says_when_no_guest_is_left(lab: Lab) -> None:
    client = await lab.start_guard()
    guest, other = lab.guest_on(lab.pool), lab.guest_on(lab.local)
    assert not (await client.arm(lab.vouch())).clear

    async with asyncio.timeout(10):
        while not (status := await client.status()).clear:
            assert status.armed
            await asyncio.sleep(0.01)
    assert guest.poll() == -signal.SIGKILL
    assert other.poll() is None
    assert await asyncio.to_thread(lab.late_guest().wait, 10) == -signal.SIGKILL, "one that comes up later dies, too"
    assert not (await client.arm(lab.vouch(ttl_s=60.0))).clear


async def test_a_guard_that_slept_through_a_lapse_kills_before_it_believes_again(lab: Lab) -> None:
    client = await lab.start_guard()
    guest = lab.guest_on(lab.pool)
    await client.arm(lab.vouch())
    assert lab.guard is not None
    lab.guard.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2 * TTL_S)
    assert guest.poll() is None
    waiting = asyncio.create_task(client.arm(lab.vouch(ttl_s=60.0)))
    await asyncio.sleep(0.1)
    lab.guard.send_signal(signal.SIGCONT)
    assert not (await waiting).expired
    assert lab.count("lapsed") == 1
    assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL


async def test_a_guard_that_was_stopped_does_not_kill_guests_whose_agent_was_well(lab: Lab) -> None:
    client = await lab.start_guard()
    guest = lab.guest_on(lab.pool)
    async with vouching(lab, client):
        await until(lambda: lab.count("armed") == 1)
        assert lab.guard is not None
        lab.guard.send_signal(signal.SIGSTOP)
        await asyncio.sleep(4 * TTL_S)
        lab.guard.send_signal(signal.SIGCONT)
        await asyncio.sleep(3.0)
        assert guest.poll() is None
    assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL


def test_a_host_that_was_suspended_past_the_deadline_has_no_grace(tmp_path: Path) -> None:
    clock_s, running_s, swept = 100.0, 50.0, []

    class SweepingKiller(Killer):
        def sweep(self, roots: tuple[str, ...]) -> list[KillEvent]:
            swept.append(clock_s)
            return []

    guard = Guard(
        killer=SweepingKiller(clock=lambda: clock_s),
        clock=lambda: clock_s,
        running_clock=lambda: running_s,
        log=lambda _: None,
        state_path=tmp_path / "state",
        boot_id="boot",
    )
    guard.handle(encode_request(Arm(since_s=clock_s, deadline_s=clock_s + 5, ttl_s=5, roots=("/pool",))))
    guard.tick()
    clock_s += 60
    running_s += 0.2
    guard.tick()
    assert swept == [160.0]


async def test_it_rests_only_without_guests(lab: Lab) -> None:
    client = await lab.start_guard()
    guest = lab.guest_on(lab.pool)
    await client.arm(lab.vouch(ttl_s=30.0))
    with pytest.raises(FailedPrecondition, match=str(guest.pid)):
        await client.disarm()
    assert (await client.status()).armed
    guest.kill()
    await asyncio.to_thread(guest.wait, 10)
    assert not (await client.disarm()).armed
    lab.end_guard(signal.SIGTERM)
    await lab.start_guard()
    assert not (await client.status()).armed


@pytest.mark.parametrize("root", ["/", "relative", "/a/../b", "/a/", ""])
async def test_it_refuses_roots_that_cover_too_much(lab: Lab, root: str) -> None:
    await lab.start_guard()
    arm = Arm(since_s=boottime_s(), deadline_s=boottime_s() + 1, ttl_s=1, roots=(root,))
    assert "root" in await ask(lab, encode_request(arm))
    assert not (await SocketGuardClient(lab.socket).status()).armed


@pytest.mark.parametrize("message", [b"{", b"[]", b'{"request":"x"}', b'{"request":"arm"}', b"\xff", b"x" * 60_000])
async def test_it_survives_nonsense(lab: Lab, message: bytes) -> None:
    client = await lab.start_guard()
    assert await ask(lab, message)
    assert not (await client.status()).armed


async def ask(lab: Lab, message: bytes) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(5)
        peer.connect(str(lab.socket))
        peer.send(message)
        return decode_answer(peer.recv(65536)).error


async def test_it_refuses_another_clock(lab: Lab) -> None:
    client = await lab.start_guard()
    with pytest.raises(InvalidArgument, match="ahead"):
        await client.arm(lab.vouch(ttl_s=3600.0))
    with pytest.raises(InvalidArgument, match="since_s"):
        await client.arm(lab.vouch(since_s=boottime_s() + 100))


async def test_a_second_guard_does_not_start(lab: Lab) -> None:
    client = await lab.start_guard()
    command = [sys.executable, "-m", "leeward_agent.guard.main", "--socket", str(lab.socket)]
    second = await asyncio.create_subprocess_exec(
        *command, "--state", str(lab.folder / "state"), stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(second.communicate(), 10)
    assert second.returncode == 1
    assert b"another guard runs" in stderr
    assert not (await client.status()).armed


async def test_the_watchdog_runs_from_arming_and_stops_only_on_leave(lab: Lab) -> None:
    device = lab.folder / "watchdog"
    os.mkfifo(device)
    reader = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    try:
        client = await lab.start_guard("--watchdog", str(device), "--watchdog-timeout", "10")
        await asyncio.sleep(0.6)
        assert pets(reader) == b""
        status = await client.arm(lab.vouch(ttl_s=30.0))
        assert status.armed
        assert (await client.status()).delay_s == 10.0
        await asyncio.sleep(1)
        assert set(pets(reader)) == {0}
        lab.end_guard(signal.SIGTERM)
        assert b"V" not in pets(reader)
        await lab.start_guard("--watchdog", str(device))
        await client.disarm()
        assert pets(reader).endswith(b"V")
        await asyncio.sleep(0.6)
        assert pets(reader) == b""
    finally:
        os.close(reader)


def pets(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""


class StubbornKiller(Killer):
    """Its victim does not end, as one that hangs in the kernel."""

    stubborn = True

    def sweep(self, roots: tuple[str, ...]) -> list[KillEvent]:
        return []

    @property
    def waiting_for_end(self) -> bool:
        return self.stubborn


def test_the_watchdog_is_not_petted_while_an_expired_guest_lives(tmp_path: Path) -> None:
    device = tmp_path / "watchdog"
    device.touch()
    now_s = 100.0
    killer = StubbornKiller(clock=lambda: now_s)
    guard = Guard(
        killer=killer,
        clock=lambda: now_s,
        log=lambda _: None,
        state_path=tmp_path / "state",
        boot_id="boot",
        watchdog=Watchdog(device, timeout_s=10),
    )
    guard.handle(encode_request(Arm(since_s=now_s, deadline_s=now_s + 5, ttl_s=5, roots=("/pool",))))
    guard.tick()
    petted = device.stat().st_size
    assert petted > 0
    now_s += 6
    for _ in range(5):
        guard.tick()
    assert device.stat().st_size == petted
    killer.stubborn = False
    guard.tick()
    assert device.stat().st_size > petted


async def test_it_stays_in_memory_is_killed_last_and_runs_first(lab: Lab) -> None:
    client = await lab.start_guard()
    assert lab.guard is not None
    process = Path(f"/proc/{lab.guard.pid}")
    refused = {event["what"] for event in lab.events() if event["event"] == "not_hardened"}
    if os.geteuid() == 0:
        # A container may take these from root as well; then its log says so, and nothing else is missing.
        assert "mlockall" not in refused
        assert locked_kib(process) > 1000
        assert ("oom_score_adj" in refused) is ((process / "oom_score_adj").read_text().strip() != "-1000")
    is_realtime = os.sched_getscheduler(lab.guard.pid) == os.SCHED_FIFO
    assert is_realtime is ("realtime scheduling" not in refused)
    guest, before = lab.guest_on(lab.pool), major_faults(process)
    await client.arm(lab.vouch())
    assert await asyncio.to_thread(guest.wait, 10) == -signal.SIGKILL
    if os.geteuid() == 0:
        assert major_faults(process) == before, "nothing that it needs for killing has to be read from a disk"


def locked_kib(process: Path) -> int:
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))


def major_faults(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[9])


def test_its_process_needs_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import leeward_agent.guard.main;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    assert set(output.stdout.split()) - sys.stdlib_module_names == {"leeward_agent"}


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        (b'{"driver":"file","filename":"/srv/pool/instances/a/root.qcow2"}', True),
        (rb'{"filename":"\/srv\/pool\/x"}', True),
        (b"-drive\0file=/srv/pool/x,format=qcow2\0", True),
        (b"/srv/pool/x", True),
        (b"/srv/pool", False),
        (b"/srv/pool2/x", False),
        (b"/mnt/srv/pool/x", False),
        (b"/mnt/srv/pool/x\0/srv/pool/y", True),
    ],
)
def test_paths_in_arguments(argument: bytes, found: bool) -> None:
    assert names_path_below(argument, ("/srv/pool",)) is found
