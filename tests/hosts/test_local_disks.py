"""Instances whose disks are in a pool of one host alone: they move with their disks."""

import asyncio
import hashlib
from pathlib import Path

import pytest
from tests.support.hosts import Guest, Lab, code_of

from leeward.v1.instance_pb2 import Storage
from leeward_lab.guest.commands import run_tool
from leeward_lab.guest.record import read_guest_record

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]


async def test_migrate_cold_with_a_local_disk_and_with_a_shared_one(lab: Lab) -> None:
    shared = await lab.running("web-1", host="host-a")
    local = await lab.running("web-2", host="host-a", storage=Storage.STORAGE_LOCAL)
    assert local.disk_at("host-a").exists()
    await local.stop()
    before = await _content(local.disk_at("host-a"))

    await local.act("MigrateInstance", node="nodes/host-b")
    assert await local.state() == "STOPPED"
    assert await _content(local.disk_at("host-b")) == before, "every byte of the disk moves"
    assert not local.disk_at("host-a").parent.exists()
    await local.start()
    await local.until_tick(boot=2)
    assert local.only_process().host == await local.host() == "host-b"
    local.check_undisturbed(boots=2)

    await shared.act("MigrateInstance", node="nodes/host-b")
    assert await shared.state() == "ACTIVE"
    await shared.until_tick(boot=2)
    assert shared.only_process().host == "host-b"
    shared.check_undisturbed(boots=2)
    domains = await lab.domains()
    assert (len(domains["host-a"]), len(domains["host-b"])) == (0, 2)

    for target, why in (("host-b", "already"), ("host-z", "exist")):
        code, refusal = await code_of(shared.act("MigrateInstance", node=f"nodes/{target}"))
        assert code in ("FAILED_PRECONDITION", "NOT_FOUND"), refusal
        assert why in str(refusal)
    assert shared.only_process().host == "host-b"


async def test_live_migrate_with_a_local_disk(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a", storage=Storage.STORAGE_LOCAL, data_disks_gib=[1])
    await guest.move("host-b")
    await _check_moved(guest, "host-a", "host-b")
    await guest.move("host-a")
    await _check_moved(guest, "host-b", "host-a")
    await guest.until_tick(boot=1, more=2)
    guest.check_undisturbed(boots=1)
    await guest.stop()
    record = await asyncio.to_thread(read_guest_record, guest.disk_at("host-a"))
    assert record.missing() == ()
    assert record.lines >= guest.last_tick().line
    await guest.start()
    await guest.until_tick(boot=2)
    guest.check_undisturbed(boots=2)


async def _check_moved(guest: Guest, source: str, target: str) -> None:
    assert guest.only_process().host == await guest.host() == target
    assert guest.disk_at(target).exists()
    assert not guest.disk_at(source).parent.exists()


async def _content(disk: Path) -> str:
    """A digest of the disk as its guest sees it."""
    raw = disk.with_name("content.raw")

    def digest() -> str:
        try:
            run_tool(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw)], timeout_s=60)
            with raw.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        finally:
            raw.unlink(missing_ok=True)

    return await asyncio.to_thread(digest)
