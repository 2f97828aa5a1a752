"""`leeward` as its users run it: a process of its own, against the real API of a simulated cluster."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.public import IMAGE, Face, PublicLab

from leeward.cli.exit_codes import ExitCode

WAIT_S = 90.0
PROGRAM = (sys.executable, "-m", "leeward.cli")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err.splitlines()[-1])["error"]


class Shell:
    """Runs `leeward` with the cluster's endpoints in its environment."""

    def __init__(self, *faces: Face, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LEEWARD_")}
        endpoints = ",".join(face.address for face in faces)
        self.environment = kept | {"LEEWARD_ENDPOINT": endpoints, "XDG_CONFIG_HOME": str(home), "TERM": "xterm"}

    async def __call__(self, *arguments: str) -> Done:
        async with self.running(*arguments) as process, asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())

    @asynccontextmanager
    async def running(self, *arguments: str, stderr: int = asyncio.subprocess.PIPE) -> AsyncIterator[Any]:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def interrupted(self, *arguments: str, when: Callable[[str], bool], stream: str) -> Done:
        """Press Ctrl-C as soon as a line on `stream` is what was waited for."""
        async with self.running(*arguments) as process, asyncio.timeout(WAIT_S):
            seen = ""
            while not when(line := (await getattr(process, stream).readline()).decode()):
                assert line, seen
                seen += line
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        out, err = out.decode(), err.decode()
        seen += line
        return Done(process.returncode or 0, seen + out if stream == "stdout" else out, seen + err)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PublicLab]:
    async with PublicLab(files=tmp_path, nodes=3) as started:
        yield started


@pytest.fixture
async def face(lab: PublicLab) -> Face:
    return await lab.add_controller()


@pytest.fixture
async def leeward(face: Face, tmp_path: Path) -> Shell:
    """The command line of a cluster with an image and flavors."""
    shell = Shell(face, home=tmp_path / "home")
    (tmp_path / "disk.raw").write_bytes(IMAGE)
    made = await asyncio.gather(
        shell("image", "upload", "tiny", str(tmp_path / "disk.raw"), "--property", "os=none"),
        shell("flavor", "create", "small", "--vcpus", "1", "--memory", "512M", "--disk", "1G"),
        shell("flavor", "create", "huge", "--vcpus", "400", "--memory", "1T", "--disk", "1G"),
    )
    assert [each.code for each in made] == [0, 0, 0], made
    return shell


async def create(shell: Shell, name: str = "web-1", *more: str) -> Done:
    return await shell("instance", "create", name, "--image", "tiny", "--flavor", "small", *more)


async def test_the_life_of_an_instance(leeward: Shell, tmp_path: Path) -> None:
    created = await create(leeward, "web-1", "--label", "env=prod", "--node", "host-b", "-o", "json")
    assert created.json["name"] == "projects/default/instances/web-1"
    assert created.json["labels"] == {"env": "prod"}
    assert (created.json["state"], created.json["node"]) == ("STATE_ACTIVE", "nodes/host-b")
    assert "create web-1: done in" in created.err

    listed, table, empty = await asyncio.gather(
        leeward("instance", "list", "-o", "json"),
        leeward("instance", "list", "--filter", "node = nodes/host-b"),
        leeward("instance", "list", "--filter", "state = STOPPED"),
    )
    assert [each["name"] for each in listed.json] == ["projects/default/instances/web-1"]
    header, row = table.out.splitlines()
    assert header.split()[:4] == ["NAME", "STATE", "NODE", "FLAVOR"]
    assert row.split()[:4] == ["web-1", "ACTIVE", "host-b", "small"]
    assert empty == Done(0, "", "There are none.\n")

    moved = await leeward("instance", "live-migrate", "web-1", "--to", "host-c", "-o", "name")
    assert moved.out == "projects/default/instances/web-1\n"
    assert "live-migrate web-1: migrate, to host-c, copying" in moved.err.splitlines()
    assert "the guest stood still for" in moved.err

    begun = await leeward("instance", "stop", "web-1", "--force", "--no-wait")
    assert begun.out.startswith("operations/")
    waited = await leeward("operation", "wait", begun.out.strip(), "-o", "json")
    assert (waited.json["state"], waited.json["node"]) == ("STATE_STOPPED", "nodes/host-c")

    events = await leeward("instance", "events", "web-1", "-o", "json")
    assert [each["type"].removeprefix("OPERATION_TYPE_") for each in events.json] == ["CREATE", "LIVE_MIGRATE", "STOP"]
    operations = await leeward("operation", "list")
    assert [line.split()[1:4] for line in operations.out.splitlines()[1:]].count(["stop", "web-1", "SUCCEEDED"]) == 1

    kept = await leeward("instance", "delete", "web-1", "--validate-only")
    assert (kept.code, kept.out) == (0, "")
    deleted = await leeward("instance", "delete", "web-1", "--yes")
    assert (deleted.code, deleted.out) == (0, "Deleted web-1.\n")
    assert (await leeward("instance", "list", "-o", "json")).json == []


async def test_errors_are_clear_and_told_apart_by_their_exit_code(leeward: Shell) -> None:
    await create(leeward)
    missing, again, full, unfit, restart = await asyncio.gather(
        leeward("instance", "get", "nope"),
        create(leeward),
        leeward("instance", "create", "big", "--image", "tiny", "--flavor", "huge", "-o", "json"),
        create(leeward, "web-2", "--node", "host-z"),
        leeward("instance", "start", "web-1", "-o", "json"),
    )
    assert (missing.code, missing.out) == (3, "")
    assert "projects/default/instances/nope does not exist" in missing.err
    assert "leeward instance list" in missing.err
    assert again.code == 4
    assert full.code == full.error["exit_code"] == 5
    assert [each["subject"] for each in full.error["violations"]] == ["nodes/host-a", "nodes/host-b", "nodes/host-c"]
    assert unfit.code == 4
    assert (restart.code, restart.error["reason"]) == (4, "WRONG_STATE")


async def test_ctrl_c_detaches_from_an_operation_that_goes_on(leeward: Shell) -> None:
    await create(leeward)
    slow = ("instance", "live-migrate", "web-1", "--bandwidth", "1")
    left = await leeward.interrupted(*slow, when=lambda line: "copying" in line, stream="stderr")
    assert left.code == 130
    assert left.out == ""
    detached = next(line for line in left.err.splitlines() if line.startswith("Detached. "))
    operation = detached.split()[1]
    short = operation.removeprefix("operations/")
    assert f"leeward operation watch {short}" in left.err
    assert "Traceback" not in left.err

    busy = await leeward("instance", "stop", "web-1")
    assert busy.code == 4
    assert f"leeward operation wait {operation}" in busy.err
    late = await leeward("operation", "wait", short, "--timeout", "200ms")
    assert late.code == 8
    assert f"leeward operation watch {operation}" in late.err
    assert (await leeward("operation", "cancel", short)).code == 0
    cancelled = await leeward("operation", "wait", short)
    assert cancelled.code == 1
    assert "cancel" in cancelled.err.lower()
    assert (await leeward("instance", "get", "web-1", "-o", "json")).json["state"] == "STATE_ACTIVE"


async def test_a_terminal_shows_a_live_bar_with_the_figures(leeward: Shell) -> None:
    await create(leeward)
    screen, terminal = pty.openpty()
    try:
        migrate = ("instance", "live-migrate", "web-1", "--bandwidth", "200", "-o", "name")
        async with leeward.running(*migrate, stderr=terminal) as process:
            os.close(terminal)
            shown = await asyncio.to_thread(read_all, screen)
            out, _ = await process.communicate()
    finally:
        os.close(screen)
    assert (process.returncode, out) == (0, b"projects/default/instances/web-1\n")
    for figure in ("live-migrate web-1", "%", "of 512 MiB left", "200 MiB/s", "dirtied at", "to go", "done in"):
        assert figure in shown


def read_all(screen: int) -> str:
    """What is written to a terminal until nobody has it open any more."""
    parts = []
    while True:
        try:
            part = os.read(screen, 65_536)
        except OSError:
            # Linux says EIO when the last one has closed the other side.
            part = b""
        if not part:
            return b"".join(parts).decode(errors="replace")
        parts.append(part)


async def test_a_controller_may_go_while_the_command_waits(lab: PublicLab, face: Face, tmp_path: Path) -> None:
    other = await lab.add_controller()
    both = Shell(face, other, home=tmp_path)
    (tmp_path / "disk.raw").write_bytes(IMAGE)
    assert (await both("image", "upload", "tiny", str(tmp_path / "disk.raw"))).code == 0
    assert (await both("flavor", "create", "small", "--vcpus", "1", "--memory", "512M", "--disk", "1G")).code == 0
    assert (await create(both)).code == 0
    async with both.running("instance", "live-migrate", "web-1", "--bandwidth", "200") as process:
        async with asyncio.timeout(WAIT_S):
            while b"copying" not in (line := await process.stderr.readline()):
                assert line
            await face.server.stop(0.0)
            out, err = await process.communicate()
    assert process.returncode == 0, err
    assert out.splitlines()[1].split()[:2] == [b"web-1", b"ACTIVE"]


async def test_lists_and_watches_follow_changes(leeward: Shell) -> None:
    nodes_are_told = asyncio.Event()

    async def watching(*arguments: str, until: str) -> Done:
        def when(line: str) -> bool:
            if "nodes/host-c" in line:
                nodes_are_told.set()
            return until in line

        return await leeward.interrupted(*arguments, when=when, stream="stdout")

    watches = [
        asyncio.create_task(watching("instance", "watch", "-o", "json", until='"STATE_ACTIVE"')),
        asyncio.create_task(watching("instance", "list", "--watch", until="ACTIVE")),
        asyncio.create_task(watching("node", "list", "--watch", "-o", "json", until='"instance_count": 1')),
    ]
    async with asyncio.timeout(WAIT_S):
        await nodes_are_told.wait()
    assert (await create(leeward)).code == 0
    events, rows, nodes = await asyncio.gather(*watches)
    assert [events.code, rows.code, nodes.code] == [130, 130, 130]
    told = [json.loads(line) for line in events.out.splitlines()]
    assert {each["resource"]["name"] for each in told} == {"projects/default/instances/web-1"}
    assert told[0]["type"] == "ADDED"
    assert rows.out.splitlines()[-1].split()[1:3] == ["web-1", "ACTIVE"]
    assert json.loads(nodes.out.splitlines()[-1])["type"] == "MODIFIED"


async def test_images_go_there_and_back(leeward: Shell, tmp_path: Path) -> None:
    back = tmp_path / "back.raw"
    shown, wrote, named = await asyncio.gather(
        leeward("image", "get", "tiny", "-o", "json"),
        leeward("image", "download", "tiny", str(back)),
        leeward("image", "list", "-o", "name"),
    )
    assert (shown.json["format"], shown.json["properties"]) == ("DISK_FORMAT_RAW", {"os": "none"})
    assert wrote.code == 0, wrote
    assert back.read_bytes() == IMAGE
    assert named.out == "projects/default/images/tiny\n"
    assert (await leeward("image", "download", "tiny", str(back))).code == 4
    assert (await leeward("image", "delete", "tiny", "--yes")).out == "Deleted tiny.\n"
    assert (await leeward("image", "get", "tiny")).code == 3


async def test_nodes_are_cordoned_and_uncordoned(leeward: Shell) -> None:
    cordoned = await leeward("node", "cordon", "host-a", "--reason", "new disks", "-o", "yaml")
    assert "condition: CONDITION_CORDONED" in cordoned.out
    assert "new disks" in (await leeward("node", "list")).out
    assert (await leeward("node", "uncordon", "host-a", "-o", "name")).out == "nodes/host-a\n"
    alive = await leeward("node", "attest-fenced", "host-a", "--evidence", "I saw it", "--boot-id", "x", "--yes")
    assert alive.code == 4
    assert (await leeward("node", "attest-fenced", "host-a", "--evidence", "I saw it", "--yes")).code == 2


async def test_the_console_is_written_and_followed(leeward: Shell) -> None:
    await create(leeward)
    whole = await leeward("instance", "console-log", "web-1")
    assert whole.code == 0, whole
    assert whole.out
    assert whole.out.startswith("leeward-guest: boot 1")
    tail = await leeward("instance", "console-log", "web-1", "--tail", "1")
    assert len(tail.out.splitlines()) == 1
    assert tail.out.startswith("leeward-guest: ")
    # It writes on, a line a second.
    later = f"line={len(whole.out.splitlines()) + 2} "
    follow = ("instance", "console-log", "web-1", "--follow")
    followed = await leeward.interrupted(*follow, when=lambda line: later in line, stream="stdout")
    assert followed.code == 130
    assert followed.out.startswith(whole.out)


async def test_the_shell_completes_names(leeward: Shell) -> None:
    leeward.environment |= {
        "_LEEWARD_COMPLETE": "complete_bash",
        "COMP_WORDS": "leeward instance create web-1 --image t",
        "COMP_CWORD": "5",
    }
    async with asyncio.timeout(WAIT_S):
        # A shell waits for no completion, so on a machine that is too busy there is none; the next try finds it.
        while (shown := (await leeward()).out) == "":
            pass
    assert shown == "tiny\n"


async def test_groups_and_the_limits_of_projects(leeward: Shell) -> None:
    assert (await leeward("group", "create", "spread", "--policy", "anti-affinity", "--label", "tier=db")).code == 0
    made = await asyncio.gather(*(create(leeward, name, "--group", "spread") for name in ("web-1", "web-2")))
    assert [each.code for each in made] == [0, 0], made
    group, nodes = await asyncio.gather(
        leeward("group", "list"), leeward("instance", "list", "--filter", "state = ACTIVE", "-o", "json")
    )
    assert group.out.splitlines()[1].split()[:3] == ["spread", "anti-affinity", "web-1,web-2"]
    assert len({each["node"] for each in nodes.json}) == 2

    limited = await leeward("project", "create", "default", "--instances", "2", "--memory", "4G", "-o", "json")
    assert limited.json["quota"] == {"instances": "2", "memory_mib": "4096"}
    assert limited.json["usage"]["vcpus"] == "2"
    header, row = (await leeward("project", "list")).out.splitlines()
    assert header.split()[:3] == ["NAME", "INSTANCES", "VCPUS"]
    assert row.split()[:7] == ["default", "2", "/", "2", "2", "/", "-"]
    refused = await create(leeward, "web-3")
    assert refused.code == ExitCode.NO_CAPACITY
    assert "2 of 2 are in use, 1 more are asked for" in refused.err
    lifted = await leeward("project", "set", "default", "--instances", "none", "-o", "json")
    assert lifted.json["quota"] == {"memory_mib": "4096"}
    assert (await create(leeward, "web-3")).code == 0
    in_use, unknown = await asyncio.gather(
        leeward("group", "delete", "spread", "--yes"), leeward("project", "set", "default", "--vcpus", "many")
    )
    assert (in_use.code, unknown.code) == (ExitCode.CONFLICT, ExitCode.USAGE)
    assert "has 2 members" in in_use.err
