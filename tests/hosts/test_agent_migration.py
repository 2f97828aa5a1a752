"""Live migration between real hosts: libvirt, QEMU and agents, through the tunnel over mutual TLS."""

import asyncio
import hashlib
import os
import shutil
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.real_agents import RealAgent, RealAgents, real_agents

from leeward.agent.types import (
    Caller,
    DiskFormat,
    GuestSpec,
    GuestState,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
)
from leeward.errors import StaleClaim
from leeward_lab.guest.record import boots_in, ticks_in
from leeward_lab.guest_image import build_guest_image, default_cache_dir

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("libvirtd") is None or shutil.which("etcd") is None, reason="needs libvirt, etcd"),
]

UID = "guest-one"
_BOOT_S = 60.0


def caller(claim_revision: int = 10, operation: str = "operations/one") -> Caller:
    return Caller(operation=operation, step="step", claim_revision=claim_revision)


async def start_guest(lab: RealAgents, agent: RealAgent, tmp_path: Path) -> GuestSpec:
    path = tmp_path / "guest.qcow2"
    await asyncio.to_thread(build_guest_image, path, cache_dir=default_cache_dir())
    image = path.read_bytes()
    spec = GuestSpec(
        uid=UID,
        name="projects/p/instances/one",
        vcpus=1,
        memory_mib=128,
        disk_gib=1,
        pool_id=lab.pool_id,
        image_digest=hashlib.sha256(image).hexdigest(),
        image_format=DiskFormat.QCOW2,
        run_epoch=1,
    )

    async def chunks() -> AsyncIterator[bytes]:
        yield image

    await agent.api.store_image(
        pool_id=lab.pool_id,
        digest=spec.image_digest,
        format=DiskFormat.QCOW2,
        size_bytes=len(image),
        chunks=chunks(),
    )
    await agent.api.create_disk(caller(), spec=spec)
    await agent.api.claim_run_epoch(caller(), spec=spec)
    assert (await agent.api.start_guest(caller(), spec=spec)).state is GuestState.RUNNING
    return spec


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
    source: RealAgent, destination: RealAgent, spec: GuestSpec, operation: str, *, bandwidth_mib_s: int = 0
) -> AsyncGenerator[MigrationProgress, None]:
    return source.api.migrate_guest(
        caller(operation=operation),
        spec=spec,
        destination=MigrationDestination(destination.node, destination.address),
        limits=MigrationLimits(bandwidth_mib_s=bandwidth_mib_s),
    )


async def migrate(source: RealAgent, destination: RealAgent, spec: GuestSpec, operation: str) -> MigrationProgress:
    return [moment async for moment in progress(source, destination, spec, operation)][-1]


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
