"""Heartbeats with nothing simulated: etcd, a directory as pool, guard processes, and what looks like a guest."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.etcd import EtcdCluster, etcd_cluster

from leeward import keys
from leeward.agent.convert import decode_node_report, encode_node_report
from leeward.agent.types import NodeReport
from leeward.clock import RandomIds
from leeward.store.etcd import EtcdStore
from leeward_agent.guard.client import SocketGuardClient
from leeward_agent.heartbeat.clock import BoottimeClock
from leeward_agent.heartbeat.service import HeartbeatService
from leeward_agent.storage.directory import DirectoryPool

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd"),
]

CLOCK = BoottimeClock()
TTL_S = 3
PERIOD_S = 0.5


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(10)


async def report_of(node: str) -> NodeReport:
    return NodeReport(
        node=node,
        boot_id="boot-1",
        agent_id="agent-1",
        address="127.0.0.1:1",
        vcpus=1,
        memory_mib=1,
        pools=(),
        hypervisor="qemu",
        hypervisor_version="1",
        agent_version="1",
        guard_armed=False,
        lease_ttl_s=0.0,
        guard_delay_s=0.0,
    )


async def no_guests() -> tuple[str, ...]:
    return ()


@asynccontextmanager
async def heartbeats(
    node: str, store: EtcdStore, pool: DirectoryPool, guard: SocketGuardClient
) -> AsyncIterator[HeartbeatService]:
    service = HeartbeatService(
        store=store,
        pools=[pool],
        guard=guard,
        clock=CLOCK,
        node=node,
        boot_id="boot-1",
        agent_id=RandomIds().new(),
        lease_key=keys.lease(node),
        report=lambda: report_of(node),
        encode=encode_node_report,
        decode=decode_node_report,
        guests=no_guests,
        ttl_s=TTL_S,
        period_s=PERIOD_S,
    )
    task = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        task.cancel()
        await asyncio.wait({task})


def start_guard(folder: Path, node: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leeward_agent.guard.main", "--socket", str(folder / f"{node}.sock")]
    return subprocess.Popen([*command, "--state", str(folder / f"{node}.state"), "--log", str(folder / f"{node}.log")])


def start_guest(folder: Path, disk: Path) -> subprocess.Popen[bytes]:
    program = folder / "qemu-system-x86_64"
    program.symlink_to(os.path.realpath(sys.executable))
    return subprocess.Popen([str(program), "-c", "import time; time.sleep(600)", f"file={disk}"])


async def reported(store: EtcdStore, node: str) -> NodeReport | None:
    held = await store.get(keys.lease(node))
    return None if held is None else decode_node_report(held.value)


async def is_armed(store: EtcdStore, node: str) -> bool:
    report = await reported(store, node)
    return report is not None and report.guard_armed


async def until(condition: Callable[[], Awaitable[bool]], *, bound_s: float) -> None:
    async with asyncio.timeout(bound_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in other processes.
            await asyncio.sleep(0.05)


async def test_the_guest_outlives_etcd_and_a_restarted_agent_and_dies_before_its_death_is_proved(
    cluster: EtcdCluster, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    shared = tmp_path / "pool"
    os.mkdir(shared)
    pools = [await DirectoryPool.open_or_create(shared, RandomIds()) for _ in range(2)]
    store = EtcdStore(cluster.endpoints, tls=None, clock=CLOCK)
    guards = []
    for node in ("node-a", "node-b"):
        processes.append(start_guard(tmp_path, node))
        guards.append(SocketGuardClient(tmp_path / f"{node}.sock", timeout_s=5.0))
    guest = start_guest(tmp_path, shared / "instances" / "x" / "root.qcow2")
    processes.append(guest)
    try:
        async with heartbeats("node-b", store, pools[1], guards[1]) as observer:
            async with heartbeats("node-a", store, pools[0], guards[0]):
                await until(lambda: is_armed(store, "node-a"), bound_s=20)
                await asyncio.to_thread(cluster.stop)
                await asyncio.sleep(2.5 * TTL_S)
                assert guest.poll() is None
                await asyncio.to_thread(cluster.start)
                await asyncio.to_thread(cluster.wait_until_healthy)
            # The agent is restarted.
            await asyncio.sleep(1)
            async with heartbeats("node-a", store, pools[0], guards[0]):
                await asyncio.sleep(2 * TTL_S)
                assert guest.poll() is None
                report = await reported(store, "node-a")
                assert report is not None
                assert report.guard_armed
            # And now it dies. An observer concludes so by what both heartbeats show it.
            silence_s = TTL_S + report.guard_delay_s

            async def is_proved() -> bool:
                silent_s = {slot.node: slot.silent_s for slot in await observer.observe_slots()}
                return await reported(store, "node-a") is None and silent_s["node-a"] >= silence_s > silent_s["node-b"]

            await until(is_proved, bound_s=30)
            assert guest.poll() == -9
    finally:
        for pool in pools:
            await pool.close()
        for guard in guards:
            await guard.close()
        await store.close()
