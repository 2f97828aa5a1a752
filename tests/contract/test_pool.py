"""What every pool promises, over a directory and in memory; then what only the directory can show."""

import asyncio
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.pools import BYTES, DIGEST, IDS, MIB, guest, listing, one_pool_twice, qemu_img, read, store

from leeward.agent.types import DiskFormat, ImageFile
from leeward.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageRefused,
    InvalidArgument,
    LeewardError,
    NotFound,
    StaleRunEpoch,
    StorageError,
)
from leeward_agent.storage.directory import DirectoryPool, PoolLimits
from leeward_agent.storage.port import Pill, Pool, RunEpochRecord, Slot
from leeward_agent.storage.qemu_img import QemuImg

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


async def until(condition: Callable[[], bool], *, bound_s: float = 10.0) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other threads and processes.
            await asyncio.sleep(0.01)


@pytest.fixture(params=["directory", "memory"])
async def pool_pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Pool, Pool]]:
    """One pool as two nodes see it."""
    async with one_pool_twice(request.param, tmp_path) as pools:
        yield pools


@pytest.fixture
async def pool(pool_pair: tuple[Pool, Pool]) -> Pool:
    return pool_pair[0]


async def test_both_nodes_see_the_same_pool(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    assert here.pool_id == there.pool_id
    report = await here.report()
    assert report.pool_id == here.pool_id
    assert report.healthy
    assert 0 < report.available_gib <= report.capacity_gib


async def test_a_stored_image_is_read_back_on_another_node_from_any_offset(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    image = await store(here)
    assert image == ImageFile(
        digest=DIGEST, size_bytes=len(BYTES), virtual_size_bytes=len(BYTES), format=DiskFormat.RAW
    )
    assert await store(here) == image
    assert await read(there, DIGEST) == BYTES
    assert await read(there, DIGEST, offset=2_000_001) == BYTES[2_000_001:]
    assert await read(there, DIGEST, offset=len(BYTES)) == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digest": "0" * 64}, "SHA-256"),
        ({"size": len(BYTES) + 512}, "declared"),
        ({"size": len(BYTES) - 512}, "declared"),
        ({"image_format": DiskFormat.QCOW2}, "no qcow2 header"),
    ],
)
async def test_an_image_that_is_not_what_was_declared_is_refused_and_leaves_nothing(
    pool: Pool, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    digest = str(arguments.get("digest", DIGEST))
    with pytest.raises(ImageRefused, match=message):
        await store(pool, **arguments)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await read(pool, digest)
    await until(lambda: not listing(tmp_path, "images/.upload*"))


async def test_an_image_in_use_cannot_be_deleted(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    await store(here)
    await here.create_disk(guest())
    with pytest.raises(FailedPrecondition, match="in use"):
        await there.delete_image(digest=DIGEST)
    assert await read(there, DIGEST) == BYTES
    await there.delete_disk("guest-1")
    await here.delete_image(digest=DIGEST)
    await here.delete_image(digest=DIGEST)
    with pytest.raises(NotFound):
        await read(here, DIGEST)
    await store(here)
    assert await read(there, DIGEST) == BYTES


async def test_a_disk_is_made_once_and_deleted_whole(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    await store(here)
    assert not await here.has_disk("guest-1")
    await here.create_disk(guest())
    await there.create_disk(guest())
    assert await there.has_disk("guest-1")
    assert here.disk_path("guest-1").is_relative_to(here.root)
    await here.write_run_epoch("guest-1", RunEpochRecord(1, "node-a"))
    await there.delete_disk("guest-1")
    await there.delete_disk("guest-1")
    assert not await here.has_disk("guest-1")
    assert await here.read_run_epoch("guest-1") is None


async def test_a_disk_needs_its_image_and_room_for_it(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=DIGEST):
        await pool.create_disk(guest())
    assert not await pool.has_disk("guest-1")
    large = bytes(2 * MIB) + BYTES
    digest = (await store(pool, large)).digest
    await pool.create_disk(guest("as-large-as-image", disk_gib=0, digest=digest))
    assert await pool.has_disk("as-large-as-image")


async def test_run_epochs_only_rise_and_one_node_wins_each(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    assert await here.read_run_epoch("guest-1") is None
    for epoch, node in ((1, "node-a"), (2, "node-b"), (5, "node-a"), (6, "node-a"), (7, "node-b")):
        record = RunEpochRecord(epoch, node)
        await here.write_run_epoch("guest-1", record)
        await there.write_run_epoch("guest-1", record)
        assert await there.read_run_epoch("guest-1") == record
    for stale in (RunEpochRecord(6, "node-a"), RunEpochRecord(7, "node-a"), RunEpochRecord(1, "node-b")):
        with pytest.raises(StaleRunEpoch, match="epoch 7 of node-b"):
            await there.write_run_epoch("guest-1", stale)
    assert await here.read_run_epoch("guest-1") == RunEpochRecord(7, "node-b")


async def test_of_simultaneous_claims_of_one_epoch_exactly_one_succeeds(pool_pair: tuple[Pool, Pool]) -> None:
    for epoch in range(1, 15):
        records = [RunEpochRecord(epoch, "node-a"), RunEpochRecord(epoch, "node-b")]
        outcomes = await asyncio.gather(
            *(pool.write_run_epoch("guest-1", record) for pool, record in zip(pool_pair, records, strict=True)),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "StaleRunEpoch"]
        assert await pool_pair[0].read_run_epoch("guest-1") == records[outcomes.index(None)]


async def test_slots_are_seen_by_the_other_node_at_once(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    assert await there.read_slots() == ()
    mine = Slot(node="node-a", boot_id="boot", agent_id="agent", sequence=1, guests=("guest-1",))
    theirs = Slot(node="node-b", boot_id="boot", agent_id="agent", sequence=1)
    await there.write_slot(theirs)
    for sequence in range(1, 30):
        await here.write_slot(replace(mine, sequence=sequence))
        assert await there.read_slots() == (replace(mine, sequence=sequence), theirs)


async def test_a_poison_pill_is_found_by_its_node_until_it_is_withdrawn(pool_pair: tuple[Pool, Pool]) -> None:
    here, there = pool_pair
    first, second = (Pill(node="node-b", boot_id="boot", pill_id=f"pill-{number}") for number in (1, 2))
    assert await there.read_pill("node-b") is None
    await there.withdraw_pill("node-b", pill_id="pill-1")
    for pill in (first, second):
        await here.write_pill(pill)
        assert await there.read_pill("node-b") == pill
    await there.withdraw_pill("node-b", pill_id=first.pill_id)
    assert await here.read_pill("node-b") == second, "another pill stays"
    await there.withdraw_pill("node-b", pill_id=second.pill_id)
    assert await here.read_pill("node-b") is None
    assert await here.read_pill("node-a") is None
    await there.write_slot(Slot(node="node-b", boot_id="boot", agent_id="agent", sequence=1, acknowledged="pill-2"))
    (slot,) = await here.read_slots()
    assert slot.acknowledged == "pill-2"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "a.b", "-a", "a\n", "x" * 64, "a\0b"])
async def test_no_name_leads_out_of_the_pool(pool: Pool, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await pool.has_disk(name)
    with pytest.raises(InvalidArgument):
        await pool.create_disk(guest(name))
    with pytest.raises(InvalidArgument):
        await pool.delete_disk(name)
    with pytest.raises(InvalidArgument):
        pool.disk_path(name)
    with pytest.raises(InvalidArgument):
        await pool.delete_image(digest=name)
    with pytest.raises(InvalidArgument):
        await read(pool, name)
    with pytest.raises(InvalidArgument):
        await pool.write_slot(Slot(node=name, boot_id="b", agent_id="a", sequence=1))
    with pytest.raises(InvalidArgument):
        await pool.write_run_epoch("guest-1", RunEpochRecord(1, name))


# What only the directory can show.


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[DirectoryPool]:
    await DirectoryPool.create(tmp_path, IDS)
    pool = await DirectoryPool.open(tmp_path, IDS)
    yield pool
    await pool.close()


async def test_of_hosts_that_create_a_pool_at_once_one_wins(tmp_path: Path) -> None:
    outcomes = await asyncio.gather(*(DirectoryPool.create(tmp_path, IDS) for _ in range(8)), return_exceptions=True)
    created = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(created) == 1
    assert all(isinstance(outcome, str | AlreadyExists) for outcome in outcomes)
    assert json.loads((tmp_path / ".leeward-pool").read_text()) == {"id": created[0], "version": 1}
    assert listing(tmp_path) == [".leeward-pool"]


async def test_a_directory_without_a_marker_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="pool marker"):
        await DirectoryPool.open(tmp_path, IDS)
    (tmp_path / ".leeward-pool").write_text("{")
    with pytest.raises(StorageError, match="cannot be understood"):
        await DirectoryPool.open(tmp_path, IDS)


@needs_qemu_img
async def test_the_disk_is_an_overlay_of_the_image_that_survives_moving_the_mount(
    directory: DirectoryPool, tmp_path: Path
) -> None:
    await store(directory)
    await directory.create_disk(guest(disk_gib=2))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    os.rename(tmp_path, moved)
    try:
        disk = moved / directory.disk_path("guest-1").relative_to(directory.root)
        output = qemu_img("info", "-f", "qcow2", "--backing-chain", "--output=json", str(disk))
        overlay, base = json.loads(output)
        assert overlay["format"] == "qcow2"
        assert overlay["virtual-size"] == 2 * 1024**3
        assert overlay["backing-filename-format"] == "raw"
        assert base["filename"].endswith(f"{DIGEST}.raw")
    finally:
        os.rename(moved, tmp_path)


@needs_qemu_img
async def test_a_disk_smaller_than_its_image_is_refused_with_both_sizes(
    directory: DirectoryPool, tmp_path: Path
) -> None:
    qemu_img("create", "-q", "-f", "qcow2", str(tmp_path / "big"), "3G")
    image = await store(directory, (tmp_path / "big").read_bytes(), image_format=DiskFormat.QCOW2)
    with pytest.raises(FailedPrecondition, match=r"2147483648.*3221225472"):
        await directory.create_disk(guest(disk_gib=2, digest=image.digest))
    assert not listing(tmp_path, "instances/*")
    await directory.delete_image(digest=image.digest)


async def test_a_failing_qemu_img_leaves_nothing_and_can_be_repeated(directory: DirectoryPool, tmp_path: Path) -> None:
    await store(directory)
    for program, timeout_s in (("false", 60.0), ("sleep", 0.3)):
        script = tmp_path / f"fake-{program}"
        script.write_text(f"#!/bin/sh\necho no luck >&2\nexec {program} 100\n")
        script.chmod(0o755)
        failing = await DirectoryPool.open(tmp_path, IDS, qemu_img=QemuImg(program=str(script), timeout_s=timeout_s))
        with pytest.raises(StorageError, match=r"no luck|not done within"):
            await failing.create_disk(guest())
        await until(lambda: not listing(tmp_path, "instances/*"))
        await failing.close()
    await directory.create_disk(guest())
    assert await directory.has_disk("guest-1")


async def test_a_cancelled_upload_leaves_nothing(directory: DirectoryPool, tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield BYTES[: 2 * MIB]
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        directory.store_image(digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(BYTES), chunks=stalling())
    )
    await asyncio.wait_for(reached.wait(), 10)
    assert len(listing(tmp_path, "images/.upload-*")) == 1
    # Another host that opens the pool now must leave the running upload alone.
    await (await DirectoryPool.open(tmp_path, IDS)).close()
    assert len(listing(tmp_path, "images/.upload-*")) == 1
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    await until(lambda: not listing(tmp_path, "images/.upload-*"))


_KILLED_UPLOADER = """
import asyncio, os, sys
from pathlib import Path
from leeward.agent.types import DiskFormat
from leeward.clock import RandomIds
from leeward_agent.storage.directory import DirectoryPool

async def endless():
    yield bytes(2 << 20)
    os.kill(os.getpid(), 9)

async def main():
    pool = await DirectoryPool.open(Path(sys.argv[1]), RandomIds())
    await pool.store_image(digest="0" * 64, format=DiskFormat.RAW, size_bytes=4 << 20, chunks=endless())

asyncio.run(main())
"""


async def test_what_a_killed_upload_left_is_swept_at_the_next_opening(directory: DirectoryPool, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _KILLED_UPLOADER, str(tmp_path))
    assert await asyncio.wait_for(process.wait(), 30) == -9
    assert len(listing(tmp_path, "images/.upload-*")) == 1
    await (await DirectoryPool.open(tmp_path, IDS)).close()
    assert not listing(tmp_path, "images/.upload-*")


async def test_a_torn_claim_never_passes_for_no_claim(directory: DirectoryPool, tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        await directory.write_run_epoch("guest-1", RunEpochRecord(epoch, "node-a"))
    path = tmp_path / "instances" / "guest-1" / "run-epoch"
    whole = path.read_bytes()
    # The half with epoch 3 spoiled, as by a crash while it was written: the claim before it counts.
    torn = whole.replace(b'"epoch":3', b'"epoch":9')
    assert torn != whole
    path.write_bytes(torn)
    assert await directory.read_run_epoch("guest-1") == RunEpochRecord(2, "node-a")
    await directory.write_run_epoch("guest-1", RunEpochRecord(4, "node-b"))
    assert await directory.read_run_epoch("guest-1") == RunEpochRecord(4, "node-b")
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(StorageError, match="damaged"):
        await directory.read_run_epoch("guest-1")
    with pytest.raises(StorageError, match="damaged"):
        await directory.write_run_epoch("guest-1", RunEpochRecord(5, "node-b"))


async def test_a_spoiled_slot_is_left_out_and_a_full_one_keeps_what_fits(
    directory: DirectoryPool, tmp_path: Path
) -> None:
    guests = tuple(f"guest-{number:020}" for number in range(500))
    for node in ("node-a", "node-b"):
        await directory.write_slot(Slot(node=node, boot_id="b", agent_id="a", sequence=7, guests=guests))
    (slot_a, slot_b) = await directory.read_slots()
    assert slot_a.sequence == 7
    assert 50 < len(slot_a.guests) < 500
    assert slot_a.guests == guests[: len(slot_a.guests)]
    path = tmp_path / "heartbeats" / "node-a"
    assert path.stat().st_size == 4096
    path.write_bytes(path.read_bytes().replace(b'"sequence":7', b'"sequence":8'))
    (tmp_path / "heartbeats" / ".nfs000001").write_bytes(b"")
    assert await directory.read_slots() == (slot_b,)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Path]:
    """A path whose opening blocks, like one on a file system whose server is gone; let go at the end."""
    path = tmp_path / "stuck"
    os.mkfifo(path)
    yield path
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    time.sleep(0.1)
    os.close(fd)


async def test_a_hanging_pool_answers_within_its_bound_and_does_not_stop_the_heartbeat(
    tmp_path: Path, stuck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pool"
    root.mkdir()
    await DirectoryPool.create(root, IDS)
    limits = PoolLimits(operation_s=0.3, report_s=0.3, slot_s=5.0, threads=2)
    before = threading.active_count()
    pool = await DirectoryPool.open(root, IDS, limits=limits)
    try:
        monkeypatch.setattr("leeward_agent.storage.directory.read_run_epoch", lambda _: os.close(os.open(stuck, 0)))
        async with asyncio.timeout(10):
            reads = (pool.read_run_epoch("guest-1") for _ in range(5))
            outcomes = await asyncio.gather(*reads, return_exceptions=True)
        assert all(isinstance(outcome, StorageError) for outcome in outcomes)
        assert not (await pool.report()).healthy
        await pool.write_slot(Slot(node="node-a", boot_id="b", agent_id="a", sequence=1))
        assert len(await pool.read_slots()) == 1
        assert threading.active_count() - before < 12, "what hangs holds a few threads, however often it is asked"
    finally:
        await pool.close()


async def test_a_pool_whose_mount_has_gone_is_neither_written_nor_healthy(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    root.mkdir()
    await DirectoryPool.create(root, IDS)
    pool = await DirectoryPool.open(root, IDS)
    try:
        os.rename(root, tmp_path / "elsewhere")
        root.mkdir()
        slot = Slot(node="node-a", boot_id="b", agent_id="a", sequence=1)
        with pytest.raises(StorageError, match="not mounted"):
            await pool.write_slot(slot)
        with pytest.raises(LeewardError, match="not mounted"):
            await pool.write_run_epoch("guest-1", RunEpochRecord(1, "node-a"))
        assert not (await pool.report()).healthy
        assert not listing(root)
    finally:
        await pool.close()
