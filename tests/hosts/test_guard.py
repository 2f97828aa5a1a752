"""The guard and a real QEMU: it is found by its real name, arguments and open files, and gone in time."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leeward_agent.guard.client import SocketGuardClient
from leeward_agent.guard.port import Vouch
from leeward_agent.guard.protocol import boottime_s

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(10)


def start_qemu(folder: Path, disk: Path) -> subprocess.Popen[bytes]:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M"], check=True, timeout=30)
    storage = json.dumps({"driver": "file", "filename": str(disk), "node-name": "s"})
    image = json.dumps({"driver": "qcow2", "file": "s", "node-name": "d"})
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-accel", "tcg", "-m", "64"]
    command += ["-blockdev", storage, "-blockdev", image, "-device", "virtio-blk-pci,drive=d"]
    return subprocess.Popen([*command, "-pidfile", str(folder / f"{disk.parent.name}.pid")])


async def exists(path: Path) -> None:
    async with asyncio.timeout(20):
        while not os.path.lexists(path):  # noqa: ASYNC110, ASYNC240 - another process makes it.
            await asyncio.sleep(0.02)


async def test_a_qemu_on_the_shared_pool_is_gone_in_time_and_one_on_a_local_disk_lives(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    shared, local = tmp_path / "shared", tmp_path / "local"
    for root in (shared, local):
        root.mkdir()
        processes.append(start_qemu(tmp_path, root / "root.qcow2"))
        await exists(tmp_path / f"{root.name}.pid")
    on_shared, on_local = processes
    command = [sys.executable, "-m", "leeward_agent.guard.main", "--socket", str(tmp_path / "guard.sock")]
    command += ["--state", str(tmp_path / "state"), "--log", str(tmp_path / "log")]
    processes.append(await asyncio.to_thread(subprocess.Popen, command))
    await exists(tmp_path / "guard.sock")
    client = SocketGuardClient(tmp_path / "guard.sock")
    now_s = boottime_s()
    status = await client.arm(Vouch(since_s=now_s, deadline_s=now_s + 1.0, ttl_s=1.0, roots=(shared,)))
    assert await asyncio.to_thread(on_shared.wait, 10) == -9
    assert 0 <= boottime_s() - status.deadline_s < status.delay_s
    assert on_local.poll() is None
    await client.close()
