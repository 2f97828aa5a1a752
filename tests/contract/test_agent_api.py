"""What every AgentApi promises: the same suite for the agent's core and for its gRPC client and server."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.support.agents import AgentHost, AgentLab

from leeward.agent.api import AgentApi
from leeward.agent.types import (
    Caller,
    DiskFormat,
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    RebootMode,
)
from leeward.errors import (
    FailedPrecondition,
    ImageRefused,
    InvalidArgument,
    NotFound,
    StaleClaim,
    StaleRunEpoch,
    Unavailable,
    WrongState,
)

_WAIT_S = 10.0
UID = "guest-one"
IMAGE = bytes(range(256)) * 8192
DIGEST = hashlib.sha256(IMAGE).hexdigest()


def spec(run_epoch: int = 1) -> GuestSpec:
    return GuestSpec(
        uid=UID,
        name="projects/p/instances/one",
        vcpus=1,
        memory_mib=128,
        disk_gib=1,
        pool_id="pool",
        image_digest=DIGEST,
        image_format=DiskFormat.RAW,
        run_epoch=run_epoch,
    )


def caller(revision: int = 10, operation: str = "operations/one") -> Caller:
    return Caller(operation=operation, step="step", revision=revision)


async def chunks(data: bytes = IMAGE) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 300_000):
        yield data[start : start + 300_000]


@pytest.fixture(params=["core", "grpc", "grpc-mtls"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AgentLab]:
    async with AgentLab(tmp_path, transport=request.param) as made:
        yield made


@pytest.fixture
async def a(lab: AgentLab) -> AgentHost:
    return await lab.add("host-a")


async def store(api: AgentApi) -> None:
    await api.store_image(pool_id="pool", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), chunks=chunks())


async def start(api: AgentApi, run_epoch: int = 1) -> GuestStatus:
    await store(api)
    await api.create_disk(caller(), spec=spec(run_epoch))
    await api.claim_run_epoch(caller(), spec=spec(run_epoch))
    return await api.start_guest(caller(), spec=spec(run_epoch))


async def until_refused(api: AgentApi, stale: Caller) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            try:
                await api.cancel_migration(stale, uid=UID)
            except StaleClaim:
                return
            await asyncio.sleep(0.01)


async def test_a_node_describes_itself(a: AgentHost) -> None:
    report = await a.api.describe_node()
    assert report.node == "host-a"
    assert report.vcpus > 0
    assert [pool.pool_id for pool in report.pools] == ["pool"]
    assert report.hypervisor == "simulated"
    assert report.labels == {"rack": "r1"}
    assert not report.draining


async def test_a_guest_lives_from_image_to_removal(a: AgentHost) -> None:
    assert (await a.api.get_guest(uid=UID)).state is GuestState.ABSENT
    status = await start(a.api, run_epoch=3)
    assert (status.uid, status.name, status.state, status.run_epoch) == (UID, spec().name, GuestState.RUNNING, 3)
    assert await a.api.list_guests() == (await a.api.get_guest(uid=UID),)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await a.api.delete_disk(caller(), spec=spec(3))
    assert (await a.api.stop_guest(caller(), uid=UID, grace_period_s=5)).state is GuestState.STOPPED
    await a.api.remove_guest(caller(), uid=UID)
    assert (await a.api.get_guest(uid=UID)).state is GuestState.ABSENT
    await a.api.delete_disk(caller(), spec=spec(3))
    with pytest.raises(NotFound):
        await a.api.start_guest(caller(), spec=spec(3))


async def test_every_mutating_call_may_be_repeated(a: AgentHost) -> None:
    for _ in range(2):
        assert (await start(a.api)).state is GuestState.RUNNING
    for _ in range(2):
        assert (await a.api.resume_guest(caller(), uid=UID)).state is GuestState.RUNNING
    for _ in range(2):
        await a.api.cancel_migration(caller(), uid=UID)
    for _ in range(2):
        status = await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
        assert status.state is GuestState.STOPPED
    for _ in range(2):
        await a.api.remove_guest(caller(), uid=UID)
    for _ in range(2):
        await a.api.delete_disk(caller(), spec=spec())
    for _ in range(2):
        await a.api.delete_image(pool_id="pool", digest=DIGEST)


async def test_an_image_comes_back_as_it_was_stored(a: AgentHost) -> None:
    image = await a.api.store_image(
        pool_id="pool", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), chunks=chunks()
    )
    assert (image.digest, image.size_bytes, image.format) == (DIGEST, len(IMAGE), DiskFormat.RAW)
    offset = 1_234_567
    pieces = [piece async for piece in a.api.read_image(pool_id="pool", digest=DIGEST, offset=offset)]
    assert b"".join(pieces) == IMAGE[offset:]
    assert max(map(len, pieces)) <= 1024 * 1024


async def test_an_image_with_another_digest_is_refused_and_not_there(a: AgentHost) -> None:
    wrong = "0" * 64
    with pytest.raises(ImageRefused, match="SHA-256"):
        await a.api.store_image(
            pool_id="pool", digest=wrong, format=DiskFormat.RAW, size_bytes=len(IMAGE), chunks=chunks()
        )
    with pytest.raises(NotFound):
        await anext(aiter(a.api.read_image(pool_id="pool", digest=wrong, offset=0)))
    with pytest.raises(NotFound, match="no pool"):
        await a.api.store_image(
            pool_id="nowhere", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), chunks=chunks()
        )


async def test_a_source_that_fails_in_the_middle_stores_nothing(a: AgentHost) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield IMAGE[:1000]
        raise NotFound("the source has gone")

    with pytest.raises(NotFound, match="the source has gone"):
        await a.api.store_image(
            pool_id="pool", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), chunks=failing()
        )
    with pytest.raises(NotFound):
        await anext(aiter(a.api.read_image(pool_id="pool", digest=DIGEST, offset=0)))


async def test_a_guest_starts_only_by_the_epoch_beside_its_disk(a: AgentHost, lab: AgentLab) -> None:
    await store(a.api)
    await a.api.create_disk(caller(), spec=spec())
    with pytest.raises(StaleRunEpoch):
        await a.api.start_guest(caller(), spec=spec())
    await a.api.claim_run_epoch(caller(), spec=spec(5))
    for wrong in (4, 6):
        with pytest.raises(StaleRunEpoch) as raised:
            await a.api.start_guest(caller(), spec=spec(wrong))
        assert raised.value.metadata["epoch"] == "5"
    b = await lab.add("host-b")
    with pytest.raises(StaleRunEpoch):
        await b.api.start_guest(caller(), spec=spec(5))
    with pytest.raises(StaleRunEpoch):
        await b.api.claim_run_epoch(caller(), spec=spec(5))
    for host in (a, b):
        assert await host.api.list_guests() == ()
    assert (await a.api.start_guest(caller(), spec=spec(5))).state is GuestState.RUNNING


async def test_a_node_whose_deadline_has_passed_starts_nothing(a: AgentHost) -> None:
    await store(a.api)
    await a.api.create_disk(caller(), spec=spec())
    await a.api.claim_run_epoch(caller(), spec=spec())
    a.vitals.legitimate = False
    with pytest.raises(Unavailable) as raised:
        await a.api.start_guest(caller(), spec=spec())
    assert raised.value.specific_reason == "NODE_NOT_LEGITIMATE"
    assert (await a.api.get_guest(uid=UID)).state is GuestState.ABSENT


async def test_a_superseded_caller_is_refused(a: AgentHost) -> None:
    await start(a.api)
    await a.api.resume_guest(caller(20), uid=UID)
    with pytest.raises(StaleClaim):
        await a.api.stop_guest(caller(19), uid=UID, grace_period_s=0)
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING
    await a.restart()
    with pytest.raises(StaleClaim):
        await a.api.stop_guest(caller(19), uid=UID, grace_period_s=0)
    assert (await a.api.stop_guest(caller(20), uid=UID, grace_period_s=0)).state is GuestState.STOPPED


async def test_a_newer_claim_ends_an_older_wait(a: AgentHost) -> None:
    await start(a.api)
    a.ignore_acpi(UID)
    waiting = asyncio.create_task(a.api.stop_guest(caller(12), uid=UID, grace_period_s=3600))
    # Once the agent has admitted it, an older claim than its own is refused.
    await until_refused(a.api, caller(11))
    status = await a.api.stop_guest(caller(13), uid=UID, grace_period_s=0)
    assert status.state is GuestState.STOPPED
    with pytest.raises(StaleClaim):
        await waiting


async def test_a_guest_that_ignores_acpi_is_killed_after_its_grace_period(a: AgentHost) -> None:
    await start(a.api)
    a.ignore_acpi(UID)
    status = await a.api.stop_guest(caller(), uid=UID, grace_period_s=0.3)
    assert status.state is GuestState.STOPPED


async def test_a_soft_reboot_falls_back_to_a_hard_one_and_says_so(a: AgentHost) -> None:
    await start(a.api)
    assert await a.api.reboot_guest(caller(), uid=UID, mode=RebootMode.HARD, timeout_s=1) is RebootMode.HARD
    assert await a.api.reboot_guest(caller(), uid=UID, mode=RebootMode.SOFT, timeout_s=5) is RebootMode.SOFT
    a.ignore_acpi(UID)
    assert await a.api.reboot_guest(caller(), uid=UID, mode=RebootMode.SOFT, timeout_s=0.3) is RebootMode.HARD
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    with pytest.raises(FailedPrecondition):
        await a.api.reboot_guest(caller(), uid=UID, mode=RebootMode.HARD, timeout_s=1)
    with pytest.raises(FailedPrecondition):
        await a.api.resume_guest(caller(), uid=UID)


async def test_a_watch_tells_what_is_and_what_changes(a: AgentHost) -> None:
    await start(a.api)
    async with aclosing(a.api.watch_guests()) as changes, asyncio.timeout(_WAIT_S):
        assert (await anext(changes)).state is GuestState.RUNNING
        await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
        while (await anext(changes)).state is not GuestState.STOPPED:
            pass


async def test_a_console_is_read_in_pieces(a: AgentHost) -> None:
    with pytest.raises(NotFound):
        await a.api.read_console(uid=UID, offset=0, limit_bytes=100)
    a.write_console(UID, b"0123456789")
    first = await a.api.read_console(uid=UID, offset=0, limit_bytes=4)
    assert (first.data, first.next_offset, first.end_offset) == (b"0123", 4, 10)
    rest = await a.api.read_console(uid=UID, offset=first.next_offset, limit_bytes=0)
    assert rest.data == b"456789"
    tail = await a.api.read_console(uid=UID, offset=-3, limit_bytes=100)
    assert (tail.data, tail.next_offset) == (b"789", 10)
    beyond = await a.api.read_console(uid=UID, offset=99, limit_bytes=100)
    assert (beyond.data, beyond.next_offset) == (b"", 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"uid": "../../etc"},
        {"uid": ""},
        {"image_digest": "/etc/passwd"},
        {"memory_mib": 0},
        {"run_epoch": 0},
        {"name": "two\nlines"},
    ],
)
async def test_a_spec_that_could_mean_anything_else_is_refused(a: AgentHost, wrong: dict[str, object]) -> None:
    values = {name: getattr(spec(), name) for name in GuestSpec.__slots__} | wrong
    with pytest.raises(InvalidArgument):
        await a.api.create_disk(caller(), spec=GuestSpec(**values))


async def migrate(source: AgentHost, destination: AgentHost, operation: str = "operations/m") -> MigrationProgress:
    moments = source.api.migrate_guest(
        caller(operation=operation),
        spec=spec(),
        destination=MigrationDestination(destination.node, destination.address),
        limits=MigrationLimits(),
    )
    return [moment async for moment in moments][-1]


async def until_migrating(api: AgentApi) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            if (await api.get_guest(uid=UID)).migrating:
                return
            await asyncio.sleep(0.01)


async def test_a_migration_moves_the_guest_and_its_outcome_is_remembered(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    await start(a.api)
    followers = [asyncio.create_task(migrate(a, b)) for _ in range(3)]
    for outcome in await asyncio.gather(*followers):
        assert outcome.phase is MigrationPhase.COMPLETED, outcome
    assert (await a.api.get_guest(uid=UID)).state is GuestState.ABSENT
    assert (await b.api.get_guest(uid=UID)).state is GuestState.RUNNING
    await b.api.claim_run_epoch(caller(), spec=spec(2))
    assert (await b.api.get_guest(uid=UID)).run_epoch == 2
    assert (await migrate(a, b)).phase is MigrationPhase.COMPLETED
    await a.restart()
    assert (await migrate(a, b)).phase is MigrationPhase.COMPLETED
    with pytest.raises(StaleRunEpoch):
        await a.api.start_guest(caller(), spec=spec())


async def test_a_cancelled_migration_leaves_the_guest_where_it_was(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    await start(a.api)
    a.slow_migrations()
    moving = asyncio.create_task(migrate(a, b))
    await until_migrating(a.api)
    with pytest.raises(WrongState, match="being migrated"):
        await migrate(a, b, "operations/other")
    await a.api.cancel_migration(caller(), uid=UID)
    assert (await moving).phase is MigrationPhase.CANCELLED
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING
    assert (await b.api.get_guest(uid=UID)).state is GuestState.ABSENT


async def test_stopping_a_migrating_guest_ends_the_migration_first(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    await start(a.api)
    a.slow_migrations()
    moving = asyncio.create_task(migrate(a, b))
    await until_migrating(a.api)
    assert (await a.api.stop_guest(caller(11), uid=UID, grace_period_s=0)).state is GuestState.STOPPED
    assert (await moving).phase is MigrationPhase.CANCELLED


async def test_a_migration_to_a_node_without_the_pool_fails_with_the_reason(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b", pools=())
    await start(a.api)
    outcome = await migrate(a, b)
    assert outcome.phase is MigrationPhase.FAILED
    assert "no healthy access to pool" in outcome.error
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING


async def test_a_stopped_guest_cannot_be_migrated(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    await start(a.api)
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    with pytest.raises(FailedPrecondition):
        await migrate(a, b)
