"""`leeward-agent` as a program: real etcd, a directory as pool, simulated guests, mutual TLS, no root."""

import asyncio
import hashlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
from tests.contract.test_agent_api import UID, caller
from tests.support.etcd import etcd_cluster

from leeward import keys
from leeward.agent.client import connect_agent
from leeward.agent.convert import decode_node_report
from leeward.agent.types import (
    DiskFormat,
    GuestSpec,
    GuestState,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    NodeReport,
)
from leeward.clock import RandomIds, SystemClock
from leeward.errors import Draining, StaleClaim
from leeward.identity import Role
from leeward.pki import CertificateAuthority, init_ca
from leeward.store.etcd import EtcdStore
from leeward_agent.storage.directory import DirectoryPool

pytestmark = [pytest.mark.etcd, pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd")]

_WAIT_S = 30.0
_IMAGE = bytes(1024 * 1024)


class Programs:
    """Agents as processes on loopback, all below one directory."""

    def __init__(self, directory: Path, etcd_endpoint: str) -> None:
        self.directory = directory
        self.ca: CertificateAuthority = init_ca(directory / "ca")
        self.store = EtcdStore([etcd_endpoint], tls=None, clock=SystemClock())
        self._etcd_endpoint = etcd_endpoint
        self._addresses: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def address(self, node: str) -> str:
        """Where the node's agent is, whichever process it is."""
        if node not in self._addresses:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._addresses[node] = f"127.0.0.1:{free.getsockname()[1]}"
        return self._addresses[node]

    def start(self, node: str) -> subprocess.Popen[bytes]:
        """Start the node's agent; it is not ready yet."""
        own = self.directory / node
        tls = self.ca.write(self.ca.issue(Role.AGENT, node), replace=True)
        own.mkdir(exist_ok=True)
        (own / "agent.toml").write_text(
            f"""
            node = "{node}"
            listen = "{self.address(node)}"
            tls_directory = "{tls}"
            etcd_endpoints = ["{self._etcd_endpoint}"]
            etcd_tls = false
            pools = ["{self.directory / "pool"}"]
            hypervisor = "simulated"
            state_directory = "{own / "state"}"
            socket_directory = "{own / "sockets"}"
            console_directory = "{self.directory / "console"}"
            console_socket_directory = "{own / "serial"}"
            guard_socket = "{own / "guard.sock"}"
            labels = {{ rack = "r1" }}
            """
        )
        command = [sys.executable, "-m", "leeward_agent.main", "--config", str(own / "agent.toml")]
        with (own / "log").open("ab") as log:
            self._processes[node] = subprocess.Popen(command, stdout=log, stderr=log)
        return self._processes[node]

    async def until_reported(self, node: str, *, other_than: str = "") -> NodeReport:
        """What the node's agent reports; another agent's than the one with that id."""
        async with asyncio.timeout(_WAIT_S):
            while True:
                held = await self.store.get(keys.lease(node))
                report = decode_node_report(held.value) if held is not None else None
                if report is not None and report.agent_id != other_than:
                    return report
                await asyncio.sleep(0.02)

    def kill(self, node: str) -> None:
        """SIGKILL, and wait for its end."""
        self._processes[node].kill()
        self._processes[node].wait()

    def kill_all(self) -> None:
        """The same for every agent."""
        for node in self._processes:
            self.kill(node)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with ExitStack() as stack:
        cluster = stack.enter_context(etcd_cluster(tmp_path / "etcd"))
        (tmp_path / "pool").mkdir()
        made = Programs(tmp_path, cluster.endpoints[0])
        stack.callback(made.kill_all)
        yield made


async def chunks() -> AsyncIterator[bytes]:
    yield _IMAGE


async def test_a_guest_moves_between_two_programs_and_an_agents_end_is_no_nodes_end(programs: Programs) -> None:
    pool = await DirectoryPool.open_or_create(programs.directory / "pool", RandomIds())
    await pool.close()
    nodes = ("host-a", "host-b")
    processes = {node: programs.start(node) for node in nodes}
    reports = {node: await programs.until_reported(node) for node in nodes}
    assert reports["host-a"].address == programs.address("host-a")
    assert [each.pool_id for each in reports["host-a"].pools] == [pool.pool_id]
    tls = programs.ca.issue(Role.CONTROLLER, "control-1")
    spec = GuestSpec(
        uid=UID,
        name="projects/p/instances/one",
        vcpus=1,
        memory_mib=64,
        disk_gib=1,
        pool_id=pool.pool_id,
        image_digest=hashlib.sha256(_IMAGE).hexdigest(),
        image_format=DiskFormat.RAW,
        run_epoch=1,
    )
    async with (
        connect_agent("host-a", programs.address("host-a"), tls) as a,
        connect_agent("host-b", programs.address("host-b"), tls) as b,
    ):
        await a.store_image(
            pool_id=pool.pool_id,
            digest=spec.image_digest,
            format=DiskFormat.RAW,
            size_bytes=len(_IMAGE),
            chunks=chunks(),
        )
        await a.create_disk(caller(), spec=spec)
        await a.claim_run_epoch(caller(), spec=spec)
        await a.start_guest(caller(), spec=spec)
        moments = a.migrate_guest(
            caller(),
            spec=spec,
            destination=MigrationDestination("host-b", programs.address("host-b")),
            limits=MigrationLimits(),
        )
        outcome = [moment async for moment in moments][-1]
        assert outcome.phase is MigrationPhase.COMPLETED, outcome
        assert (await a.get_guest(uid=UID)).state is GuestState.ABSENT
        assert (await b.get_guest(uid=UID)).state is GuestState.RUNNING

        held = await programs.store.get(keys.lease("host-a"))
        assert held is not None
        watch = aclosing(a.watch_guests())
        async with watch as changes:
            watching = asyncio.create_task(anext(changes))
            await a.list_guests()
            processes["host-a"].send_signal(signal.SIGTERM)
            with pytest.raises(Draining):
                await watching
        assert await asyncio.to_thread(processes["host-a"].wait, _WAIT_S) == 0
        for _ in range(2):
            programs.start("host-a")
            report = await programs.until_reported("host-a", other_than=reports["host-a"].agent_id)
            reports["host-a"] = report
            # An agent that is killed says nothing, and the one after it takes over all the same.
            programs.kill("host-a")
        now = await programs.store.get(keys.lease("host-a"))
        assert now is not None
        assert now.create_revision == held.create_revision, "the node's key was gone in between"
        programs.start("host-a")
        await programs.until_reported("host-a", other_than=reports["host-a"].agent_id)
        with pytest.raises(StaleClaim):
            await a.remove_guest(caller(9), uid=UID)
    await programs.store.close()


def test_wrong_settings_are_told_in_words() -> None:
    command = [sys.executable, "-m", "leeward_agent.main", "--node", "host-a", "--etcd-endpoints", "127.0.0.1:1"]
    environment = {"LEEWARD_AGENT_LEASE_TTL_S": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_WAIT_S, check=False)
    assert ended.returncode == 1
    assert "lease_ttl_s" in ended.stderr
    assert "Traceback" not in ended.stderr
