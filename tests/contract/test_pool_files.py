"""What a directory pool puts into guests' files, as QEMU and cloud-init will see it."""

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pycdlib
import pytest
from tests.support.pool_cuts import VERBS
from tests.support.pools import IDS, guest, listing, qemu_img, store

from leeward.agent.types import CloudInit, DiskFormat, Firmware, Nic, RescueImage
from leeward.errors import DataLoss, FailedPrecondition, NotFound, StorageError
from leeward_agent.firmware import Ovmf, find_ovmf
from leeward_agent.storage.directory import DirectoryPool
from leeward_agent.storage.seed import build_seed

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

UID = "guest-1"
GIB = 1024**3
CLOUD_INIT = CloudInit(b"#cloud-config\npackages: [jq]\n", ("ssh-ed25519 AAAA me", "ssh-ed25519 BBBB you"))
NICS = (Nic("02:00:00:00:00:01", "br0"), Nic("02:00:00:00:00:02"))
SEEDED = replace(guest(), name="projects/p/instances/web-1", cloud_init=CLOUD_INIT, nics=NICS)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[DirectoryPool]:
    await DirectoryPool.create(tmp_path, IDS)
    made = await DirectoryPool.open(tmp_path, IDS)
    await store(made)
    yield made
    await made.close()


def info(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(path)))
    return found


def write(path: Path, text: str, *, at: str) -> None:
    """Have a guest write: `text` repeated over 64 KiB at an offset of the disk."""
    pattern = text.encode()[0]
    command = f"write -P {pattern} {at} 64k"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True, timeout=30)


def holds(path: Path, text: str, *, at: str) -> bool:
    """Whether a disk of either format holds what `write` wrote there."""
    command = f"read -P {text.encode()[0]} {at} 64k"
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True, timeout=30
    )
    return b"verification failed" not in done.stdout


def files_on(iso: bytes) -> dict[str, bytes]:
    """The seed's files as Linux sees them (Rock Ridge)."""
    disk, found = pycdlib.PyCdlib(), {}
    disk.open_fp(io.BytesIO(iso))
    for name in ("meta-data", "user-data", "network-config"):
        output = io.BytesIO()
        disk.get_file_from_iso_fp(output, rr_path=f"/{name}")
        found[name] = output.getvalue()
    disk.close()
    return found


def test_the_seed_tells_cloud_init_who_the_guest_is() -> None:
    iso = build_seed(SEEDED, CLOUD_INIT)
    found = files_on(iso)
    assert found["user-data"] == CLOUD_INIT.user_data
    assert json.loads(found["meta-data"]) == {
        "instance-id": UID,
        "local-hostname": "web-1",
        "public-keys": ["ssh-ed25519 AAAA me", "ssh-ed25519 BBBB you"],
    }
    network = json.loads(found["network-config"])
    assert network["version"] == 2
    assert [each["match"]["macaddress"] for each in network["ethernets"].values()] == [nic.mac for nic in NICS]
    assert all(each["dhcp4"] for each in network["ethernets"].values())


def test_a_seed_without_user_data_is_still_a_cloud_config() -> None:
    found = files_on(build_seed(guest(), CloudInit()))
    assert found["user-data"].startswith(b"#cloud-config\n")


@pytest.mark.skipif(shutil.which("blkid") is None, reason="needs blkid")
async def test_the_seed_has_the_label_that_cloud_init_looks_for(pool: DirectoryPool) -> None:
    await pool.create_disk(SEEDED)
    seed = pool.disks(SEEDED).seed
    output = await asyncio.to_thread(
        subprocess.check_output, ["blkid", "-p", "-o", "value", "-s", "LABEL", "-s", "TYPE", str(seed)], timeout=30
    )
    assert output.decode().lower().split() == ["cidata", "iso9660"]


async def test_data_and_rescue_disks_are_what_they_should_be(pool: DirectoryPool) -> None:
    spec = replace(guest(), data_disks_gib=(1, 5), rescue=RescueImage(guest().image_digest, DiskFormat.RAW))
    await pool.create_disk(spec)
    disks = pool.disks(spec)
    assert [info(path)["virtual-size"] for path in disks.data] == [GIB, 5 * GIB]
    assert all("backing-filename" not in info(path) for path in disks.data)
    assert disks.rescue is not None
    assert str(info(disks.rescue)["backing-filename"]).endswith(f"images/{guest().image_digest}.raw")


async def test_a_guest_with_uefi_gets_variables_of_its_own(tmp_path: Path, pool: DirectoryPool) -> None:
    spec = replace(guest(), firmware=Firmware.UEFI)
    template = tmp_path / "vars"
    template.write_bytes(b"variables")
    for firmware in (None, Ovmf(tmp_path / "code", tmp_path / "absent")):
        bare = await DirectoryPool.open(tmp_path, IDS, find_firmware=partial(_same, firmware))
        with pytest.raises((FailedPrecondition, StorageError)):
            await bare.create_disk(spec)
        assert not listing(tmp_path, "instances/*")
        await bare.close()
    able = await DirectoryPool.open(tmp_path, IDS, find_firmware=lambda: Ovmf(tmp_path / "code", template))
    await able.create_disk(spec)
    path = able.disks(spec).firmware_vars
    assert path is not None
    assert path.read_bytes() == b"variables"
    path.write_bytes(b"changed by the guest")
    await able.create_disk(spec)
    assert path.read_bytes() == b"changed by the guest"
    await able.close()


def test_debians_firmware_is_found_where_it_is_installed() -> None:
    if not Path("/usr/share/OVMF").is_dir():
        pytest.skip("needs the package ovmf")
    found = find_ovmf()
    assert found is not None
    assert found.variables.stat().st_size > 0


async def test_a_resized_disk_holds_what_the_old_one_did_and_the_old_one_stays_as_it_was(pool: DirectoryPool) -> None:
    await pool.create_disk(guest())
    root = pool.disk_path(UID)
    kept = root.with_name("root.before-resize.qcow2")
    write(root, "a", at="800M")
    await pool.resize_disk(guest(disk_gib=3), operation="resize-1")
    assert info(root)["virtual-size"] == 3 * GIB
    assert info(kept)["virtual-size"] == GIB
    write(root, "b", at="2G")
    assert holds(root, "a", at="800M")
    # An image of 3 MiB and one cluster more: the copy has the holes of the old one.
    assert root.stat().st_blocks * 512 < 2 * 1024**2
    write(root, "c", at="800M")
    await pool.revert_disk(UID)
    assert info(root)["virtual-size"] == GIB
    assert holds(root, "a", at="800M")
    await pool.resize_disk(guest(disk_gib=2), operation="resize-1")
    assert info(root)["virtual-size"] == 2 * GIB
    assert holds(root, "a", at="800M")
    await pool.confirm_disk(UID)
    assert info(root)["virtual-size"] == 2 * GIB
    assert not kept.exists()


async def test_a_snapshot_stands_alone_and_holds_image_and_changes(pool: DirectoryPool, tmp_path: Path) -> None:
    await pool.create_disk(guest())
    write(pool.disk_path(UID), "a", at="500M")
    made = await pool.snapshot_disk(UID, operation="snapshot-1")
    image = tmp_path / "images" / f"{made.image.digest}.qcow2"
    assert "backing-filename" not in info(image)
    assert image.stat().st_mode & 0o777 == 0o644
    assert holds(image, "a", at="500M")
    compared = qemu_img("compare", "-f", "qcow2", "-F", "qcow2", str(image), str(pool.disk_path(UID)))
    assert b"identical" in compared


async def test_what_a_hypervisor_wrote_becomes_an_image_only_if_it_is_one(pool: DirectoryPool, tmp_path: Path) -> None:
    await pool.create_disk(guest())
    images = listing(tmp_path, "images/*.*w*")
    path = await pool.new_snapshot(UID)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / images[0]), str(path))
    with pytest.raises(StorageError, match="backing file"):
        await pool.keep_snapshot(UID, operation="snapshot-1", quiesced=True)
    assert not path.exists()
    assert listing(tmp_path, "images/*.*w*") == images
    path = await pool.new_snapshot(UID)
    await asyncio.to_thread(shutil.copyfile, tmp_path / images[0], path)
    await pool.drop_snapshot(UID)
    path = await pool.new_snapshot(UID)
    qemu_img("create", "-q", "-f", "qcow2", str(path), "1G")
    kept = await pool.keep_snapshot(UID, operation="snapshot-1", quiesced=True)
    assert kept.quiesced
    assert await pool.known_snapshot(UID, operation="snapshot-1") == kept


async def test_memory_that_libvirt_did_not_finish_is_no_memory(pool: DirectoryPool) -> None:
    await pool.create_disk(guest())
    for content in (b"", b"LibvirtQemudPart" + b"x" * 100):
        path = await pool.new_memory(UID)
        path.write_bytes(content)
        assert not await pool.keep_memory(UID)
        assert not path.exists()
        assert not await pool.has_memory(UID)


async def test_a_pulled_disk_that_is_based_on_a_file_of_this_host_is_refused(
    pool: DirectoryPool, tmp_path: Path
) -> None:
    await pool.create_disk(guest())
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1024))
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(pool.disk_path(UID)))
    root = tmp_path / "there"
    root.mkdir()
    await DirectoryPool.create(root, IDS)
    there = await DirectoryPool.open(root, IDS)
    await store(there)
    with pytest.raises(DataLoss, match="no image of this pool"):
        await there.pull_disk(
            guest(), operation="move-1", read=lambda file, offset: pool.read_disk(UID, file=file, offset=offset)
        )
    assert not await there.has_disk(UID)
    await there.delete_disk(UID)
    assert not listing(root, "instances/*")
    await there.close()


async def test_a_full_pool_is_told_before_anything_is_copied(
    pool: DirectoryPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.create_disk(guest())
    before = listing(tmp_path, "instances/*/*")
    monkeypatch.setattr("leeward_agent.storage.bulk.fcntl.ioctl", _no_reflink)
    monkeypatch.setattr("leeward_agent.storage.running.os.statvfs", lambda _: _Usage())

    async def refused(work: Awaitable[object]) -> bool:
        with pytest.raises(StorageError) as full:
            await work
        return full.value.specific_reason == "POOL_FULL"

    assert await refused(pool.resize_disk(guest(disk_gib=2), operation="resize-1"))
    assert await refused(pool.snapshot_disk(UID, operation="snapshot-1"))
    assert await refused(store(pool, b"x" * 1024**2))
    assert listing(tmp_path, "instances/*/*") == before


def _same(firmware: Ovmf | None) -> Ovmf | None:
    return firmware


class _Usage:
    f_bavail = 1
    f_frsize = 512


def _no_reflink(*_: object) -> int:
    raise OSError(95, "Operation not supported")


async def test_an_image_that_nobody_wants_any_more_leaves_no_part_behind(pool: DirectoryPool, tmp_path: Path) -> None:
    digest = "1" * 64

    async def cut(offset: int) -> AsyncGenerator[bytes, None]:
        yield b"x" * (1024**2 + offset)
        raise NotFound("gone")

    with pytest.raises(NotFound):
        await pool.fetch_image(digest=digest, format=DiskFormat.RAW, size_bytes=2 * 1024**2, read=cut)
    (part,) = (tmp_path / "images").glob(".part-*")
    await pool.delete_image(digest="2" * 64)
    assert part.exists()
    old_s = part.stat().st_mtime - 4000
    os.utime(part, (old_s, old_s))
    await pool.delete_image(digest="2" * 64)
    assert not part.exists()


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_that_was_cut_anywhere_can_be_repeated_or_its_guest_deleted(verb: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.pool_cuts", verb, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(110):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told, _, cuts = output.decode().strip().rpartition("\n")
    assert json.loads(told) == []
    assert int(cuts) > 1
