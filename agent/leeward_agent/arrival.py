"""Who may bring a guest to this host by live migration. The caller names a guest and never a path."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from leeward.agent.types import GuestStatus
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import FailedPrecondition, PermissionDenied, StorageError
from leeward_agent.power import in_memory
from leeward_agent.reconcile import highest_record
from leeward_agent.storage.port import Pool

_QCOW2_MAGIC = b"QFI\xfb"
# docs/interop/qcow2.txt of QEMU: l1_size and l1_table_offset, big-endian, at offset 36 of the header.
_L1_FIELDS = struct.Struct(">IQ")
_L1_FIELDS_OFFSET = 36
_L1_ENTRY_BYTES = 8
# An L1 table of this many entries describes a disk of 64 TiB.
_L1_LARGEST_BYTES = 1024 * 1024


class Arrivals:
    """Judges each tunnel by the pools of this host."""

    def __init__(self, pools: Sequence[Pool], *, get_guest: Callable[[str], Awaitable[GuestStatus]]) -> None:
        self._pools = tuple(pools)
        self._get_guest = get_guest

    async def admit(self, header: pb.TunnelHeader) -> None:
        """Raises PermissionDenied or FailedPrecondition unless the guest is the calling node's to bring here.

        In a shared pool, the run epoch record beside its disk says whose it is. In a pool of this host alone there is
        no record before it has arrived; then a controller has made ready its disks here, and nothing has been written
        into them: into disks with something in them, what the source has not written would not be carried.
        """
        uid, source = header.uid, header.source_node
        record = await highest_record(self._pools, uid)
        if record is not None:
            if record.node != source:
                raise PermissionDenied(f"guest {uid} is not {source}'s to migrate: {record.node} may run it")
            return
        disk = await self._disk(uid)
        if disk is None:
            raise PermissionDenied(
                f"guest {uid} is not {source}'s to migrate: nobody may run it, and it has no disk here"
            )
        if header.target == pb.TUNNEL_TARGET_LIBVIRT and not in_memory(await self._get_guest(uid)):
            await _check_blank(disk.parent)

    async def _disk(self, uid: str) -> Path | None:
        for pool in self._pools:
            if await pool.has_disk(uid):
                return pool.disk_path(uid)
        return None


async def _check_blank(folder: Path) -> None:
    try:
        filled = await asyncio.to_thread(_filled_disks, folder)
    except OSError as error:
        raise StorageError(f"the disks in {folder} cannot be read: {error}") from error
    if filled:
        raise FailedPrecondition(
            f"{', '.join(filled)} of guest {folder.name} hold data already, of an earlier attempt perhaps:"
            " delete its disks here and make them anew",
            reason="DISK_NOT_BLANK",
        )


def _filled_disks(folder: Path) -> list[str]:
    return [path.name for path in sorted(folder.glob("*.qcow2")) if not is_blank(path)]


def is_blank(path: Path) -> bool:
    """Whether nothing was ever written into a qcow2 file over what it is based on: all of its L1 table is zero.

    Raises OSError. A file that cannot be understood is not blank.
    """
    with path.open("rb") as file:
        header = file.read(_L1_FIELDS_OFFSET + _L1_FIELDS.size)
        if not header.startswith(_QCOW2_MAGIC) or len(header) < _L1_FIELDS_OFFSET + _L1_FIELDS.size:
            return False
        entries, offset = _L1_FIELDS.unpack_from(header, _L1_FIELDS_OFFSET)
        size_bytes = entries * _L1_ENTRY_BYTES
        if size_bytes > _L1_LARGEST_BYTES:
            return False
        file.seek(offset)
        table = file.read(size_bytes)
        return len(table) == size_bytes and not any(table)
