"""A pool that is a directory: on a disk of this host, or on a file system that several hosts mount.

A shared one needs a file system with locks between hosts and with O_EXCL and rename as POSIX says: NFS 4, CephFS, GFS2,
OCFS2, or one directory bind-mounted into several namespaces.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from leeward.agent.types import HeldGuest, HeldImage, PoolInventory, PoolKind, PoolReport
from leeward.clock import Ids
from leeward.errors import AlreadyExists, NotFound, StorageError
from leeward_agent.firmware import Ovmf, find_ovmf
from leeward_agent.storage import pillfiles, slotfiles
from leeward_agent.storage.creating import DirectoryDisks
from leeward_agent.storage.disks import GIB
from leeward_agent.storage.epochs import read_run_epoch, write_run_epoch
from leeward_agent.storage.fetching import DirectoryImages
from leeward_agent.storage.folders import ListedFolder, list_folders
from leeward_agent.storage.marker import HEARTBEATS, PILLS, create_pool, is_network_filesystem, open_pool
from leeward_agent.storage.memory_files import DirectoryMemory
from leeward_agent.storage.names import checked_node, checked_uid
from leeward_agent.storage.port import Pill, RunEpochRecord, Slot
from leeward_agent.storage.qemu_img import QemuImg
from leeward_agent.storage.resizing import DirectoryResizing
from leeward_agent.storage.running import PoolLimits, PoolRunner
from leeward_agent.storage.snapshots import DirectorySnapshots
from leeward_agent.storage.transfer import DirectoryTransfer
from leeward_agent.storage.workers import Workers

__all__ = ["DirectoryPool", "PoolLimits"]


class DirectoryPool(
    DirectoryDisks, DirectoryResizing, DirectoryMemory, DirectorySnapshots, DirectoryTransfer, DirectoryImages
):
    """A `Pool` over a directory. Made by `open`."""

    def __init__(
        self,
        runner: PoolRunner,
        *,
        is_network: bool,
        ids: Ids,
        qemu_img: QemuImg,
        find_firmware: Callable[[], Ovmf | None],
    ) -> None:
        super().__init__(runner, ids=ids, qemu_img=qemu_img, find_firmware=find_firmware)
        self._is_network = is_network
        # Each heartbeat has a thread of its own, so that neither waits behind bulk work or behind the other.
        self._slot_writer = Workers(f"pool-{runner.pool_id}-slot-writer", count=1)
        self._slot_reader = Workers(f"pool-{runner.pool_id}-slot-reader", count=1)
        self._capacity_gib = 0

    @classmethod
    async def create(cls, root: Path, ids: Ids, *, bound_s: float = 30.0) -> str:
        """Make an existing directory a pool, and answer its new id.

        Of several hosts that try at once one succeeds. Raises AlreadyExists, NotFound (no directory), StorageError.
        """
        workers = Workers("pool-create", count=1)
        pool_id = ids.new()
        try:
            call = partial(create_pool, root, pool_id=pool_id, token=ids.new())
            await workers.run(f"creating a pool at {root}", call, bound_s=bound_s)
        finally:
            workers.close()
        return pool_id

    @classmethod
    async def open(
        cls,
        root: Path,
        ids: Ids,
        *,
        qemu_img: QemuImg | None = None,
        limits: PoolLimits | None = None,
        find_firmware: Callable[[], Ovmf | None] = find_ovmf,
    ) -> "DirectoryPool":
        """The pool at `root`, after sweeping away what dead uploads left. Raises NotFound (no pool), StorageError."""
        limits = limits or PoolLimits()
        workers = Workers(f"pool-{root.name}", count=limits.threads)
        what = f"opening the pool at {root}"
        # The guard looks for this path in QEMU's arguments and open files, where the kernel shows it without links.
        resolved = await workers.run(what, root.resolve, bound_s=limits.operation_s)
        pool_id, mount = await workers.run(what, partial(open_pool, resolved), bound_s=limits.operation_s)
        is_network = await workers.run(what, partial(is_network_filesystem, resolved), bound_s=limits.operation_s)
        runner = PoolRunner(resolved, pool_id=pool_id, mount=mount, limits=limits, workers=workers)
        pool = cls(runner, is_network=is_network, ids=ids, qemu_img=qemu_img or QemuImg(), find_firmware=find_firmware)
        await runner.run("sweeping uploads", pool._images.sweep)
        return pool

    @classmethod
    async def open_or_create(
        cls, root: Path, ids: Ids, *, qemu_img: QemuImg | None = None, limits: PoolLimits | None = None
    ) -> "DirectoryPool":
        """`open`, after `create` where no pool is yet."""
        try:
            return await cls.open(root, ids, qemu_img=qemu_img, limits=limits)
        except NotFound:
            with contextlib.suppress(AlreadyExists):  # Another host was faster.
                await cls.create(root, ids)
        return await cls.open(root, ids, qemu_img=qemu_img, limits=limits)

    @property
    def pool_id(self) -> str:
        return self._runner.pool_id

    @property
    def root(self) -> Path:
        return self._runner.root

    @property
    def is_network(self) -> bool:
        return self._is_network

    async def report(self) -> PoolReport:
        root, kind = self._runner.root, PoolKind.DIRECTORY
        try:
            usage = await self._runner.run("measuring", partial(os.statvfs, root), bound_s=self._runner.limits.report_s)
        except StorageError:
            return PoolReport(self.pool_id, kind, self._capacity_gib, 0, healthy=False)
        self._capacity_gib = usage.f_blocks * usage.f_frsize // GIB
        available_gib = usage.f_bavail * usage.f_frsize // GIB
        return PoolReport(self.pool_id, kind, self._capacity_gib, available_gib, root=str(root))

    async def inventory(self) -> PoolInventory:
        listed = await self._runner.run("listing images", self._images.everything)
        images = tuple(HeldImage(each.digest, each.size_bytes, each.users, each.age_s) for each in listed)
        folders = await self._runner.run(
            "listing guests", partial(list_folders, self._disks.path, now=self._images.now)
        )
        guests = tuple([await self._held_guest(folder) for folder in folders])
        return PoolInventory(self.pool_id, images, guests)

    async def _held_guest(self, folder: ListedFolder) -> HeldGuest:
        record = await self.read_run_epoch(folder.uid)
        epoch, node = (0, "") if record is None else (record.epoch, record.node)
        return HeldGuest(folder.uid, folder.files, epoch, node, folder.age_s)

    async def read_run_epoch(self, uid: str) -> RunEpochRecord | None:
        instance = self._disks.instance(checked_uid(uid))
        return await self._runner.run("reading a run epoch", partial(read_run_epoch, instance))

    async def write_run_epoch(self, uid: str, record: RunEpochRecord) -> None:
        checked_uid(uid)
        checked_node(record.node)
        token = self._ids.new()

        def write() -> None:
            write_run_epoch(self._disks.make_instance(uid), record, token=token)

        await self._runner.run("writing a run epoch", write)

    async def write_slot(self, slot: Slot) -> None:
        checked_node(slot.node)
        write = partial(slotfiles.write_slot, self._runner.root / HEARTBEATS, slot)
        bound_s = self._runner.limits.slot_s
        await self._runner.run("writing the storage heartbeat", write, bound_s=bound_s, workers=self._slot_writer)

    async def read_slots(self) -> tuple[Slot, ...]:
        read = partial(slotfiles.read_slots, self._runner.root / HEARTBEATS)
        bound_s = self._runner.limits.slot_s
        return await self._runner.run("reading storage heartbeats", read, bound_s=bound_s, workers=self._slot_reader)

    async def write_pill(self, pill: Pill) -> None:
        checked_node(pill.node)
        await self._runner.run("leaving a poison pill", partial(pillfiles.write_pill, self._pills, pill))

    async def read_pill(self, node: str) -> Pill | None:
        read = partial(pillfiles.read_pill, self._pills, checked_node(node))
        bound_s = self._runner.limits.slot_s
        return await self._runner.run("looking for a poison pill", read, bound_s=bound_s, workers=self._slot_reader)

    async def withdraw_pill(self, node: str, *, pill_id: str) -> None:
        withdraw = partial(pillfiles.withdraw_pill, self._pills, checked_node(node), pill_id=pill_id)
        await self._runner.run("withdrawing a poison pill", withdraw)

    @property
    def _pills(self) -> Path:
        return self._runner.root / PILLS

    async def close(self) -> None:
        for workers in (self._runner.workers, self._slot_writer, self._slot_reader):
            workers.close()
