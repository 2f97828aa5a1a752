"""Who may bring a guest here, by what lies in the pools of this host."""

import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from leeward.agent.types import GuestState, GuestStatus
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import FailedPrecondition, PermissionDenied
from leeward_agent.arrival import Arrivals, is_blank
from leeward_agent.storage.port import Pool, RunEpochRecord

UID = "guest-one"


class OnePool:
    """As much of a pool as is asked here."""

    def __init__(self, folder: Path, record: RunEpochRecord | None) -> None:
        self._folder = folder
        self._record = record

    async def read_run_epoch(self, uid: str) -> RunEpochRecord | None:
        return self._record

    async def has_disk(self, uid: str) -> bool:
        return self.disk_path(uid).exists()

    def disk_path(self, uid: str) -> Path:
        return self._folder / uid / "root.qcow2"


def header(target: pb.TunnelTarget.ValueType = pb.TUNNEL_TARGET_LIBVIRT) -> pb.TunnelHeader:
    return pb.TunnelHeader(operation="operations/one", uid=UID, source_node="host-a", target=target)


def guest_is(state: GuestState) -> Callable[[str], Awaitable[GuestStatus]]:
    async def get_guest(uid: str) -> GuestStatus:
        return GuestStatus(uid, "", state)

    return get_guest


def arrivals(folder: Path, record: RunEpochRecord | None = None, *, here: GuestState = GuestState.ABSENT) -> Arrivals:
    pool: Pool = OnePool(folder, record)  # type: ignore[assignment]
    return Arrivals([pool], get_guest=guest_is(here))


def make_disk(folder: Path, *, written: bool) -> Path:
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        pytest.skip("needs qemu-utils")
    (folder / UID).mkdir(parents=True)
    base, disk = folder / "base.qcow2", folder / UID / "root.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk, "1G"], check=True)
    if written:
        write = ["qemu-io", "-f", "qcow2", "-c", "write 512M 4k", str(disk)]
        subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    return disk


async def test_in_a_shared_pool_the_record_says_whose_guest_it_is(tmp_path: Path) -> None:
    await arrivals(tmp_path, RunEpochRecord(epoch=3, node="host-a")).admit(header())
    with pytest.raises(PermissionDenied, match="host-c may run it"):
        await arrivals(tmp_path, RunEpochRecord(epoch=3, node="host-c")).admit(header())


async def test_without_a_record_its_disks_must_have_been_made_ready(tmp_path: Path) -> None:
    with pytest.raises(PermissionDenied, match="it has no disk here"):
        await arrivals(tmp_path).admit(header())
    make_disk(tmp_path, written=False)
    for target in (pb.TUNNEL_TARGET_LIBVIRT, pb.TUNNEL_TARGET_DISK, pb.TUNNEL_TARGET_MEMORY):
        await arrivals(tmp_path).admit(header(target))


async def test_disks_with_data_of_an_earlier_attempt_are_refused(tmp_path: Path) -> None:
    make_disk(tmp_path, written=True)
    with pytest.raises(FailedPrecondition, match=r"root\.qcow2 .*hold data already") as caught:
        await arrivals(tmp_path).admit(header())
    assert caught.value.specific_reason == "DISK_NOT_BLANK"
    # While it arrives, its disks fill; a broken post-copy is taken up again then.
    await arrivals(tmp_path, here=GuestState.RUNNING).admit(header())
    await arrivals(tmp_path).admit(header(pb.TUNNEL_TARGET_DISK))


def test_only_an_untouched_qcow2_file_is_blank(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, written=False)
    assert is_blank(disk)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 1020M 64k", disk], check=True, stdout=subprocess.DEVNULL)
    assert not is_blank(disk), "zeros that were written are data too"
    for junk in (b"", b"QFI\xfb", b"no disk at all" * 100):
        other = tmp_path / "other.qcow2"
        other.write_bytes(junk)
        assert not is_blank(other)
