"""Live migration between real hosts: libvirt, QEMU and agents, through the tunnel over mutual TLS."""

import asyncio
import hashlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.real_agents import RealAgent, RealAgents, real_agents

from leeward.agent.types import (
    Caller,
    DiskFormat,
    Escalation,
    GuestSpec,
    GuestState,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
)
from leeward.errors import FailedPrecondition, StaleClaim
from leeward_lab.guest.commands import run_tool
from leeward_lab.guest.record import boots_in, read_guest_record, ticks_in
from leeward_lab.guest_image import build_guest_image, default_cache_dir

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("libvirtd") is None or shutil.which("etcd") is None, reason="needs libvirt, etcd"),
]

UID = "guest-one"
_BOOT_S = 60.0
_FILLED_BYTES = 16 * 1024**2


def caller(revision: int = 10, operation: str = "operations/one") -> Caller:
    return Caller(operation=operation, step="step", revision=revision)


async def make_disks(
    agent: RealAgent, tmp_path: Path, *, pool_id: str, data_disks_gib: tuple[int, ...] = ()
) -> GuestSpec:
    """The image and the guest's disks in one of the agent's pools."""
    path = tmp_path / "guest.qcow2"
    await asyncio.to_thread(build_guest_image, path, cache_dir=default_cache_dir())
    image = path.read_bytes()
    spec = GuestSpec(
        uid=UID,
        name="projects/p/instances/one",
        vcpus=1,
        memory_mib=160,
        disk_gib=1,
        pool_id=pool_id,
        image_digest=hashlib.sha256(image).hexdigest(),
        image_format=DiskFormat.QCOW2,
        run_epoch=1,
        data_disks_gib=data_disks_gib,
    )

    async def chunks() -> AsyncIterator[bytes]:
        yield image

    await agent.api.store_image(
        pool_id=pool_id,
        digest=spec.image_digest,
        format=DiskFormat.QCOW2,
        size_bytes=len(image),
        chunks=chunks(),
    )
    await agent.api.create_disk(caller(), spec=spec)
    return spec


async def start_guest(lab: RealAgents, agent: RealAgent, tmp_path: Path) -> GuestSpec:
    """A guest in the shared pool."""
    spec = await make_disks(agent, tmp_path, pool_id=lab.pool_id)
    await run(agent, spec)
    return spec


async def run(agent: RealAgent, spec: GuestSpec) -> None:
    await agent.api.claim_run_epoch(caller(), spec=spec)
    assert (await agent.api.start_guest(caller(), spec=spec)).state is GuestState.RUNNING


async def say(agent: RealAgent, command: str, expected: str) -> str:
    """Type a command on the guest's console; the first match of `expected` in what the console shows from then on."""

    async def typed() -> AsyncIterator[bytes]:
        yield command.encode() + b"\n"

    shown = ""
    async with asyncio.timeout(_BOOT_S), aclosing(agent.api.attach_console(uid=UID, input=typed())) as output:
        async for data in output:
            shown += data.decode(errors="replace")
            found = re.search(expected, shown)
            if found is not None:
                return found.group(0)
    pytest.fail(f"the console ended before {expected!r}: {shown!r}")


async def disk_sums(agent: RealAgent) -> str:
    """What is on the guest's disks but for its own record: read from the disks, and not from its memory."""
    command = (
        "sync; echo 3 >/proc/sys/vm/drop_caches;"
        f" echo sums $(cat /dev/vda1 | sha256sum) $(head -c {_FILLED_BYTES} /dev/vdb | sha256sum) ."
    )
    return await say(agent, command, r"sums [0-9a-f]{64} +- [0-9a-f]{64} +- \.")


async def console(agent: RealAgent) -> str:
    chunk = await agent.api.read_console(uid=UID, offset=0, limit_bytes=0)
    return chunk.data.decode(errors="replace")


async def until_ticks_beyond(agent: RealAgent, line: int) -> int:
    """The last line that the guest has printed, once it is beyond `line`."""
    async with asyncio.timeout(_BOOT_S):
        while True:
            ticks = ticks_in(await console(agent))
            if ticks and ticks[-1].line > line:
                return ticks[-1].line
            await asyncio.sleep(0.1)


def progress(
    source: RealAgent, destination: RealAgent, spec: GuestSpec, operation: str, **limits: Any
) -> AsyncGenerator[MigrationProgress, None]:
    return source.api.migrate_guest(
        caller(operation=operation),
        spec=spec,
        destination=MigrationDestination(destination.node, destination.address),
        limits=MigrationLimits(**limits),
    )


async def migrate(
    source: RealAgent, destination: RealAgent, spec: GuestSpec, operation: str, **limits: Any
) -> MigrationProgress:
    return [moment async for moment in progress(source, destination, spec, operation, **limits)][-1]


async def until_copying(moments: AsyncGenerator[MigrationProgress, None]) -> None:
    async with asyncio.timeout(_BOOT_S):
        async for moment in moments:
            if moment.phase is MigrationPhase.COPYING and moment.memory_processed_bytes > 0:
                return


async def until_only_on(agent: RealAgent, other: RealAgent) -> None:
    """Wait until the guest runs here, and nothing of it is left there."""
    async with asyncio.timeout(_BOOT_S):
        while True:
            here, there = await agent.api.get_guest(uid=UID), await other.api.get_guest(uid=UID)
            if here.state is GuestState.RUNNING and not here.migrating and there.state is GuestState.ABSENT:
                return
            await asyncio.sleep(0.1)


async def restart(lab: RealAgents, agent: RealAgent, number: signal.Signals) -> None:
    """End the agent's program by a signal, and start it again."""
    before = await lab.until_reported(agent.node)
    assert await agent.host.signal("agent", number)
    async with asyncio.timeout(30):
        while agent.host.spawned("agent").process.alive():  # noqa: ASYNC110 - it happens in another process.
            await asyncio.sleep(0.02)
    await agent.start()
    after = await lab.until_reported(agent.node, other_than=before.agent_id)
    assert after.boot_id == before.boot_id


async def test_a_guest_moves_there_and_back_and_never_notices(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a", "host-b") as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        spec = await start_guest(lab, a, tmp_path)
        line = await until_ticks_beyond(a, 0)
        for epoch, (source, destination) in enumerate([(a, b), (b, a)], start=2):
            started_s = time.monotonic()
            outcome = await migrate(source, destination, spec, f"operations/to-{destination.node}")
            took_s = time.monotonic() - started_s
            assert outcome.phase is MigrationPhase.COMPLETED, outcome
            print(f"{source.node} to {destination.node}: {took_s:.2f} s, downtime {outcome.downtime_ms} ms")
            assert (await source.api.get_guest(uid=UID)).state is GuestState.ABSENT
            spec = replace(spec, run_epoch=epoch)
            await destination.api.claim_run_epoch(caller(), spec=spec)
            status = await destination.api.get_guest(uid=UID)
            assert (status.state, status.run_epoch) == (GuestState.RUNNING, epoch)
            line = await until_ticks_beyond(destination, line)
        assert len(boots_in(await console(a))) == 1


async def test_an_agent_that_is_killed_or_stopped_disturbs_no_guest(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a") as lab:
        a = lab.agents["host-a"]
        await start_guest(lab, a, tmp_path)
        line = await until_ticks_beyond(a, 0)
        for number in (signal.SIGKILL, signal.SIGTERM):
            await restart(lab, a, number)
            line = await until_ticks_beyond(a, line)
        assert len(boots_in(await console(a))) == 1
        with pytest.raises(StaleClaim):
            await a.api.stop_guest(caller(9), uid=UID, grace_period_s=0)
        assert (await a.api.stop_guest(caller(), uid=UID, grace_period_s=20)).state is GuestState.STOPPED


async def test_a_migration_whose_agent_is_killed_leaves_the_guest_at_its_source(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a", "host-b") as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        spec = await start_guest(lab, a, tmp_path)
        line = await until_ticks_beyond(a, 0)
        for victim in (a, b):
            operation = f"operations/without-{victim.node}"
            async with aclosing(progress(a, b, spec, operation, bandwidth_mib_s=4)) as moments:
                await until_copying(moments)
            await restart(lab, victim, signal.SIGKILL)
            await until_only_on(a, b)
            if victim is b:
                outcome = await migrate(a, b, spec, operation)
                assert outcome.phase is MigrationPhase.FAILED, outcome
                assert outcome.error
            line = await until_ticks_beyond(a, line)
        assert (await migrate(a, b, spec, "operations/again")).phase is MigrationPhase.COMPLETED
        await until_ticks_beyond(b, line)
        assert len(boots_in(await console(b))) == 1


async def test_every_byte_of_local_disks_goes_along_through_the_tunnel(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a", "host-b") as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        spec = await make_disks(a, tmp_path, pool_id=lab.local_pool_ids["host-a"], data_disks_gib=(1,))
        await run(a, spec)
        line = await until_ticks_beyond(a, 0)
        await say(a, f"head -c {_FILLED_BYTES} /dev/urandom >/dev/vdb; echo filled $((1 + 1))", "filled 2")
        sums = await disk_sums(a)
        there = lab.local_pool_ids["host-b"]

        refused = await migrate(a, b, spec, "operations/unready", copies_disks=True, target_pool_id=there)
        assert refused.phase is MigrationPhase.FAILED
        assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING

        await make_disks(b, tmp_path, pool_id=there, data_disks_gib=(1,))
        moments = [
            moment async for moment in progress(a, b, spec, "operations/local", copies_disks=True, target_pool_id=there)
        ]
        assert moments[-1].phase is MigrationPhase.COMPLETED, moments[-1]
        assert max(moment.disk_total_bytes for moment in moments) >= _FILLED_BYTES
        left_behind = replace(spec, run_epoch=2)
        spec = replace(left_behind, pool_id=there)
        await b.api.claim_run_epoch(caller(), spec=spec)
        await until_ticks_beyond(b, line)
        assert await disk_sums(b) == sums
        assert len(boots_in(await console(b))) == 1

        # Its definition there names the disks there, and they hold all that it acknowledged.
        told = await until_ticks_beyond(b, line)
        assert (await b.api.stop_guest(caller(), uid=UID, grace_period_s=20)).state is GuestState.STOPPED
        record = read_guest_record(b.local_pool / "instances" / UID / "root.qcow2")
        assert record.lines >= told
        assert record.missing() == ()
        assert (await b.api.start_guest(caller(), spec=spec)).state is GuestState.RUNNING
        await until_ticks_beyond(b, record.lines)
        await a.api.delete_disk(caller(), spec=left_behind)
        assert not (a.local_pool / "instances" / UID).exists()


async def test_a_disk_that_holds_data_already_is_not_migrated_into(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a", "host-b") as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        there = lab.local_pool_ids["host-b"]
        spec = await make_disks(a, tmp_path, pool_id=lab.local_pool_ids["host-a"])
        await make_disks(b, tmp_path, pool_id=there)
        disk = b.local_pool / "instances" / UID / "root.qcow2"
        run_tool(["qemu-io", "-f", "qcow2", "-c", "write 512M 64k", disk], timeout_s=20)
        await run(a, spec)
        line = await until_ticks_beyond(a, 0)

        outcome = await migrate(a, b, spec, "operations/local", copies_disks=True, target_pool_id=there)

        assert outcome.phase is MigrationPhase.FAILED, outcome
        await until_only_on(a, b)
        await until_ticks_beyond(a, line)


# A new agent takes seconds to start on a busy machine, and without one the guard would kill the guest.
_PATIENT = {"lease_ttl_s": "60"}
_POST_COPY = {"bandwidth_mib_s": 6, "escalation": Escalation.POST_COPY, "max_downtime_ms": 300}


async def until_in_post_copy(moments: AsyncGenerator[MigrationProgress, None]) -> MigrationProgress:
    """Wait until the guest runs on the destination while its memory follows."""
    first: MigrationProgress | None = None
    async for moment in moments:
        if moment.phase is MigrationPhase.SWITCHING:
            first = first or moment
            # QEMU switches between two looks at its socket, a moment after it was told to.
            if moment.elapsed_ms > first.elapsed_ms + 1500:
                return moment
    pytest.fail("the migration ended without post-copy")


async def test_a_post_copy_whose_agent_is_killed_is_taken_up_by_the_next_one(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a", "host-b", settings=_PATIENT) as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        spec = await start_guest(lab, a, tmp_path)
        line = await until_ticks_beyond(a, 0)
        await say(a, "churn 32 &", "churn mib=32")
        async with aclosing(progress(a, b, spec, "operations/busy", **_POST_COPY)) as moments:
            moment = await until_in_post_copy(moments)
        assert moment.decision.startswith("post-copy: ")
        with pytest.raises(FailedPrecondition, match="cannot be cancelled any more"):
            await a.api.cancel_migration(caller(), uid=UID)

        await restart(lab, a, signal.SIGKILL)

        outcome = await migrate(a, b, spec, "operations/busy", **_POST_COPY)
        assert outcome.phase is MigrationPhase.COMPLETED, outcome
        await until_only_on(b, a)
        await until_ticks_beyond(b, line)
        assert len(boots_in(await console(b))) == 1


async def test_a_guest_whose_halves_cannot_meet_again_runs_on_neither_host(tmp_path: Path) -> None:
    async with real_agents(tmp_path, "host-a", "host-b", settings=_PATIENT | {"post_copy_mend_s": "5"}) as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        spec = await start_guest(lab, a, tmp_path)
        await until_ticks_beyond(a, 0)
        await say(a, "churn 32 &", "churn mib=32")
        async with aclosing(progress(a, b, spec, "operations/busy", **_POST_COPY | {"bandwidth_mib_s": 8})) as moments:
            await until_in_post_copy(moments)
            await b.host.power_off()
            *_, last = [moment async for moment in moments]
        assert last.phase is MigrationPhase.FAILED, last
        assert "each host holds a part of the guest's memory" in last.error
        assert (await a.api.get_guest(uid=UID)).state is GuestState.STOPPED


# What `libvirtd --listen` would be: libvirt's own protocol is the same on both sockets.
_LIBVIRT_BY_TCP = """
import asyncio

async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def accept(reader, writer):
    there = await asyncio.open_unix_connection("/run/libvirt/libvirt-sock")
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(accept, "0.0.0.0", 16509) as server:
        await server.serve_forever()

asyncio.run(main())
"""


async def test_past_the_agents_a_guest_and_its_disks_move_over_connections_of_their_own(tmp_path: Path) -> None:
    native = {
        "migration_transport": "native",
        "migration_libvirt_uri": "qemu+tcp://{host}/system",
        "migration_tls": "false",
        "migration_connections": "2",
    }
    async with real_agents(tmp_path, "host-a", "host-b", settings=native) as lab:
        a, b = lab.agents["host-a"], lab.agents["host-b"]
        await b.host.spawn([sys.executable, "-c", _LIBVIRT_BY_TCP], name="libvirt-by-tcp")
        there = lab.local_pool_ids["host-b"]
        spec = await make_disks(a, tmp_path, pool_id=lab.local_pool_ids["host-a"])
        await make_disks(b, tmp_path, pool_id=there)
        await run(a, spec)
        line = await until_ticks_beyond(a, 0)

        outcome = await migrate(a, b, spec, "operations/native", copies_disks=True, target_pool_id=there)

        assert outcome.phase is MigrationPhase.COMPLETED, outcome
        await until_only_on(b, a)
        await until_ticks_beyond(b, line)
        assert len(boots_in(await console(b))) == 1
