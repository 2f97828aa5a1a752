"""What every pool promises about guests' disks and their way between pools, over a directory and in memory."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.support.pools import BYTES, DIGEST, guest, one_pool_twice, read, store

from leeward.agent.types import CloudInit, DiskFormat, Firmware, GuestSpec, HeldGuest, Nic, RescueImage
from leeward.errors import AgentUnavailable, FailedPrecondition, ImageRefused, InvalidArgument, NotFound, StorageError
from leeward_agent.storage.listing import decode_listing
from leeward_agent.storage.port import Pool, RunEpochRecord

MakePool = Callable[[], Awaitable[Pool]]
UID = "guest-1"
OTHER_BYTES = BYTES[::-1]
OTHER_DIGEST = hashlib.sha256(OTHER_BYTES).hexdigest()
FULL = replace(
    guest(),
    name="projects/p/instances/web",
    data_disks_gib=(1, 2),
    nics=(Nic("02:00:00:00:00:01"),),
    cloud_init=CloudInit(b"#cloud-config\n", ("ssh-ed25519 AAAA me",)),
    firmware=Firmware.UEFI,
)
IN_RESCUE = replace(FULL, rescue=RescueImage(OTHER_DIGEST, DiskFormat.RAW))


@dataclass
class Source:
    """Another node's pool behind a connection that breaks after so many bytes, if told so."""

    pool: Pool
    breaks_after: int = -1
    asked: list[tuple[str, int]] = field(default_factory=list)
    spoil: Callable[[bytes], bytes] = lambda data: data

    async def disk(self, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        async for chunk in self._broken(file, offset, self.pool.read_disk(UID, file=file, offset=offset)):
            yield chunk

    async def image(self, offset: int) -> AsyncGenerator[bytes, None]:
        async for chunk in self._broken("image", offset, self.pool.read_image(digest=DIGEST, offset=offset)):
            yield chunk

    async def _broken(self, what: str, offset: int, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        self.asked.append((what, offset))
        async for chunk in chunks:
            if not what or self.breaks_after < 0:
                yield self.spoil(chunk) if what else chunk
                continue
            part = chunk[: self.breaks_after]
            self.breaks_after -= len(part)
            if part:
                yield part
            if not self.breaks_after:
                raise AgentUnavailable("the connection broke")


@pytest.fixture(params=["directory", "memory"])
async def make_pool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakePool]:
    """Makes pools, each as one node sees it."""
    async with AsyncExitStack() as stack:
        count = 0

        async def make() -> Pool:
            nonlocal count
            count += 1
            path = tmp_path / f"pool-{count}"
            path.mkdir()
            return (await stack.enter_async_context(one_pool_twice(request.param, path)))[0]

        yield make


@pytest.fixture
async def pool(make_pool: MakePool) -> Pool:
    made = await make_pool()
    await store(made)
    await store(made, OTHER_BYTES)
    return made


async def held(pool: Pool, uid: str = UID) -> HeldGuest | None:
    return next((each for each in (await pool.inventory()).guests if each.uid == uid), None)


async def files(pool: Pool) -> set[str]:
    found = await held(pool)
    return set() if found is None else set(found.files) - {"disk.json"}


async def users(pool: Pool) -> dict[str, tuple[str, ...]]:
    return {image.digest: image.users for image in (await pool.inventory()).images}


async def save_memory(pool: Pool) -> None:
    path = await pool.new_memory(UID)
    if path.parent.is_dir():
        path.write_bytes(b"LibvirtQemudSave and so on")
    assert await pool.keep_memory(UID)


async def test_all_that_the_spec_names_is_made_and_what_is_there_stays(pool: Pool) -> None:
    await pool.create_disk(FULL)
    disks = pool.disks(FULL)
    assert disks.root == pool.disk_path(UID)
    assert [path.name for path in disks.data] == ["data-1.qcow2", "data-2.qcow2"]
    assert disks.seed is not None
    assert disks.firmware_vars is not None
    assert disks.rescue is None
    paths = (disks.root, *disks.data, disks.seed, disks.firmware_vars)
    assert await files(pool) == {path.name for path in paths}
    before = [path.stat().st_ino for path in paths if path.exists()]
    await pool.create_disk(FULL)
    assert [path.stat().st_ino for path in paths if path.exists()] == before
    assert await users(pool) == {DIGEST: (UID,), OTHER_DIGEST: ()}
    assert pool.disks(guest()).data == ()
    assert pool.disks(guest()).seed is None
    await pool.delete_disk(UID)
    assert await held(pool) is None
    assert await users(pool) == {DIGEST: (), OTHER_DIGEST: ()}


async def test_a_guest_whose_disks_cannot_all_be_made_has_none(pool: Pool) -> None:
    missing = replace(FULL, rescue=RescueImage("0" * 64, DiskFormat.RAW))
    with pytest.raises(NotFound, match="0" * 64):
        await pool.create_disk(missing)
    assert await held(pool) is None
    with pytest.raises(FailedPrecondition) as refused:
        await pool.create_disk(replace(FULL, disk_gib=-1))
    assert refused.value.specific_reason == "DISK_TOO_SMALL"
    assert await held(pool) is None
    assert await users(pool) == {DIGEST: (), OTHER_DIGEST: ()}


async def test_a_rescue_disk_comes_and_goes_beside_the_root_disk(pool: Pool) -> None:
    await pool.create_disk(FULL)
    await pool.drop_rescue_disk(UID)
    before = await files(pool)
    await pool.create_disk(IN_RESCUE)
    assert pool.disks(IN_RESCUE).rescue == pool.rescue_path(UID)
    assert await files(pool) - before == {"rescue.qcow2"}
    with pytest.raises(FailedPrecondition, match="in use"):
        await pool.delete_image(digest=OTHER_DIGEST)
    # Another rescue image takes the place of what an earlier rescue left; here it is also that of the root disk.
    await pool.create_disk(replace(FULL, rescue=RescueImage(DIGEST, DiskFormat.RAW)))
    assert await users(pool) == {DIGEST: (UID,), OTHER_DIGEST: ()}
    await pool.drop_rescue_disk(UID)
    assert await files(pool) == before
    assert await users(pool) == {DIGEST: (UID,), OTHER_DIGEST: ()}


async def test_a_root_disk_is_replaced_once_for_each_operation(pool: Pool) -> None:
    await pool.create_disk(FULL)
    await save_memory(pool)
    rebuilt = replace(FULL, image_digest=OTHER_DIGEST, cloud_init=None)
    await pool.replace_disk(rebuilt, operation="rebuild-1")
    assert await users(pool) == {DIGEST: (), OTHER_DIGEST: (UID,)}
    assert await files(pool) == {"root.qcow2", "data-1.qcow2", "data-2.qcow2", "nvram.fd"}
    await pool.replace_disk(replace(rebuilt, image_digest=DIGEST), operation="rebuild-1")
    assert await users(pool) == {DIGEST: (), OTHER_DIGEST: (UID,)}
    with pytest.raises(NotFound):
        await pool.replace_disk(replace(rebuilt, image_digest="0" * 64), operation="rebuild-2")
    assert await pool.has_disk(UID)
    await pool.replace_disk(replace(rebuilt, image_digest=DIGEST), operation="rebuild-2")
    assert await users(pool) == {DIGEST: (UID,), OTHER_DIGEST: ()}


async def test_a_resize_keeps_the_old_disk_until_it_is_confirmed(pool: Pool) -> None:
    larger = replace(FULL, disk_gib=3)
    with pytest.raises(NotFound):
        await pool.resize_disk(larger, operation="resize-1")
    assert await held(pool) is None
    await pool.create_disk(FULL)
    before = await files(pool)
    await pool.resize_disk(larger, operation="resize-1")
    await pool.resize_disk(larger, operation="resize-1")
    assert await files(pool) - before == {"root.before-resize.qcow2"}
    with pytest.raises(FailedPrecondition) as pending:
        await pool.resize_disk(replace(FULL, disk_gib=4), operation="resize-2")
    assert pending.value.specific_reason == "RESIZE_PENDING"
    await pool.confirm_disk(UID)
    await pool.confirm_disk(UID)
    assert await files(pool) == before
    await pool.resize_disk(larger, operation="resize-1")
    assert await files(pool) == before
    with pytest.raises(FailedPrecondition) as shrinks:
        await pool.resize_disk(FULL, operation="resize-3")
    assert shrinks.value.specific_reason == "DISK_WOULD_SHRINK"
    assert await users(pool) == {DIGEST: (UID,), OTHER_DIGEST: ()}


async def test_a_reverted_resize_can_be_done_again_by_the_same_operation(pool: Pool) -> None:
    await pool.create_disk(FULL)
    before = await files(pool)
    for _ in range(2):
        await pool.resize_disk(replace(FULL, disk_gib=2), operation="resize-1")
        assert await files(pool) - before == {"root.before-resize.qcow2"}
        await pool.revert_disk(UID)
        await pool.revert_disk(UID)
        assert await files(pool) == before
    # The old size again, so that this is no shrinking.
    await pool.resize_disk(FULL, operation="resize-2")
    await pool.revert_disk(UID)
    await pool.revert_disk("nobody")
    await pool.confirm_disk("nobody")
    assert await users(pool) == {DIGEST: (UID,), OTHER_DIGEST: ()}


async def test_memory_is_there_when_it_was_kept_and_until_it_is_discarded(pool: Pool) -> None:
    await pool.create_disk(guest())
    assert not await pool.has_memory(UID)
    assert not await pool.keep_memory(UID)
    await save_memory(pool)
    assert await pool.keep_memory(UID)
    assert await pool.has_memory(UID)
    assert pool.memory_path(UID).name in await files(pool)
    await pool.discard_memory(UID)
    await pool.discard_memory(UID)
    assert not await pool.has_memory(UID)
    assert not await pool.keep_memory(UID)
    await pool.discard_memory("nobody")


async def test_a_snapshot_is_an_image_that_its_operation_finds_again(pool: Pool) -> None:
    with pytest.raises(NotFound):
        await pool.snapshot_disk(UID, operation="snapshot-1")
    await pool.create_disk(guest())
    assert await pool.known_snapshot(UID, operation="snapshot-1") is None
    made = await pool.snapshot_disk(UID, operation="snapshot-1")
    assert not made.quiesced
    assert made.image.format is DiskFormat.QCOW2
    assert made.image.virtual_size_bytes == 1024**3
    data = await read(pool, made.image.digest)
    assert hashlib.sha256(data).hexdigest() == made.image.digest
    assert len(data) == made.image.size_bytes
    assert await pool.known_snapshot(UID, operation="snapshot-1") == made
    assert await pool.snapshot_disk(UID, operation="snapshot-1") == made
    assert await pool.known_snapshot(UID, operation="snapshot-2") is None
    assert await files(pool) == {"root.qcow2"}
    # It stands alone: neither the guest nor the guest's image has to stay.
    await pool.delete_disk(UID)
    await pool.delete_image(digest=DIGEST)
    await pool.create_disk(guest(digest=made.image.digest))
    assert (await users(pool))[made.image.digest] == (UID,)


async def test_a_cut_pull_goes_on_where_it_was_and_brings_all_files(pool: Pool, make_pool: MakePool) -> None:
    await pool.create_disk(IN_RESCUE)
    await pool.resize_disk(replace(FULL, disk_gib=2), operation="resize-1")
    there = await make_pool()
    with pytest.raises(NotFound, match=DIGEST):
        await there.pull_disk(IN_RESCUE, operation="move-1", read=Source(pool).disk)
    await store(there)
    await store(there, OTHER_BYTES)
    listed = decode_listing(b"".join([chunk async for chunk in pool.read_disk(UID, file="", offset=0)]))
    broken = Source(pool, breaks_after=listed[0].size_bytes + 10)
    with pytest.raises(AgentUnavailable):
        await there.pull_disk(IN_RESCUE, operation="move-1", read=broken.disk)
    assert not await there.has_disk(UID)
    assert await users(there) == {DIGEST: (), OTHER_DIGEST: ()}
    source = Source(pool)
    await there.pull_disk(IN_RESCUE, operation="move-1", read=source.disk)
    assert [file for file, _ in broken.asked] == ["", listed[0].file, listed[1].file]
    assert [file for file, _ in source.asked] == ["", *(each.file for each in listed[1:])]
    assert await files(there) == await files(pool)
    assert await users(there) == {DIGEST: (UID,), OTHER_DIGEST: (UID,)}
    for file in await files(pool):
        assert [c async for c in there.read_disk(UID, file=file, offset=0)] == [
            c async for c in pool.read_disk(UID, file=file, offset=0)
        ]
    # Once it has come it may be changed here and be gone there.
    await pool.delete_disk(UID)
    await there.pull_disk(IN_RESCUE, operation="move-1", read=Source(pool).disk)
    with pytest.raises(FailedPrecondition) as exists:
        await there.pull_disk(IN_RESCUE, operation="move-2", read=Source(pool).disk)
    assert exists.value.specific_reason == "DISK_EXISTS"
    await there.delete_disk(UID)
    with pytest.raises(NotFound):
        await there.pull_disk(IN_RESCUE, operation="move-2", read=Source(pool).disk)
    assert await held(there) is None


async def test_a_pulled_file_that_is_not_what_was_listed_is_not_taken(pool: Pool, make_pool: MakePool) -> None:
    await pool.create_disk(FULL)
    there = await make_pool()
    await store(there)
    with pytest.raises(StorageError, match="SHA-256"):
        await there.pull_disk(FULL, operation="move-1", read=Source(pool, spoil=lambda data: data[::-1]).disk)
    assert not await there.has_disk(UID)
    await there.pull_disk(FULL, operation="move-1", read=Source(pool).disk)
    assert await files(there) == await files(pool)


@pytest.mark.parametrize("name", ["run-epoch", "disk.json", "../x", ".lock", "memory.save.new", "data-0.qcow2"])
async def test_only_a_guests_disks_can_be_read_from_elsewhere(pool: Pool, name: str) -> None:
    await pool.create_disk(guest())
    await pool.write_run_epoch(UID, RunEpochRecord(1, "node-a"))
    with pytest.raises(InvalidArgument):
        await anext(pool.read_disk(UID, file=name, offset=0))
    with pytest.raises(NotFound):
        await anext(pool.read_disk(UID, file="seed.iso", offset=0))


async def test_a_cut_fetch_of_an_image_goes_on_where_it_was(pool: Pool, make_pool: MakePool) -> None:
    there = await make_pool()

    async def fetch(source: Source, size_bytes: int = len(BYTES)) -> None:
        image = await there.fetch_image(digest=DIGEST, format=DiskFormat.RAW, size_bytes=size_bytes, read=source.image)
        assert image == (await store(pool))

    with pytest.raises(AgentUnavailable):
        await fetch(Source(pool, breaks_after=1_500_000))
    assert await users(there) == {}
    source = Source(pool)
    with pytest.raises(StorageError, match="SHA-256"):
        await fetch(Source(pool, spoil=lambda data: bytes(len(data))))
    with pytest.raises(AgentUnavailable):
        await fetch(Source(pool, breaks_after=1024**2))
    await fetch(source)
    assert source.asked == [("image", 1024**2)]
    assert await read(there, DIGEST) == BYTES
    await fetch(Source(pool, breaks_after=0))


async def test_a_fetched_image_is_judged_like_an_uploaded_one(pool: Pool, make_pool: MakePool) -> None:
    there = await make_pool()
    with pytest.raises(ImageRefused, match="qcow2"):
        await there.fetch_image(digest=DIGEST, format=DiskFormat.QCOW2, size_bytes=len(BYTES), read=Source(pool).image)
    with pytest.raises(StorageError, match="more than"):
        await there.fetch_image(digest=DIGEST, format=DiskFormat.RAW, size_bytes=512, read=Source(pool).image)
    with pytest.raises(StorageError, match="ended after"):
        await there.fetch_image(
            digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(BYTES) + 512, read=Source(pool).image
        )
    assert await users(there) == {}


async def test_an_inventory_tells_all_that_is_there(pool: Pool) -> None:
    second: GuestSpec = guest("guest-2")
    await pool.create_disk(guest())
    await pool.create_disk(second)
    await pool.write_run_epoch(UID, RunEpochRecord(7, "node-b"))
    await pool.write_run_epoch("guest-3", RunEpochRecord(1, "node-a"))
    found = await pool.inventory()
    assert found.pool_id == pool.pool_id
    assert [image.digest for image in found.images] == sorted((DIGEST, OTHER_DIGEST))
    assert {image.digest: image.users for image in found.images} == {DIGEST: (UID, "guest-2"), OTHER_DIGEST: ()}
    assert all(image.size_bytes == len(BYTES) and 0 <= image.age_s < 60 for image in found.images)
    assert [(each.uid, each.run_epoch, each.node) for each in found.guests] == [
        (UID, 7, "node-b"),
        ("guest-2", 0, ""),
        ("guest-3", 1, "node-a"),
    ]
    assert set(found.guests[0].files) >= {"root.qcow2", "run-epoch"}
    assert all(0 <= each.age_s < 60 for each in found.guests)
