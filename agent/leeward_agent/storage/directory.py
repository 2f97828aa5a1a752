"""A pool that is a directory: on a disk of this host, or on a file system that several hosts mount.

A shared one needs a file system with locks between hosts and with O_EXCL and rename as POSIX says: NFS 4, CephFS, GFS2,
OCFS2, or one directory bind-mounted into several namespaces.
"""

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from leeward.agent.types import DiskFormat, GuestSpec, ImageFile, PoolKind, PoolReport
from leeward.clock import Ids
from leeward.errors import AlreadyExists, NotFound, StorageError
from leeward_agent.storage import slotfiles
from leeward_agent.storage.disks import GIB, ROOT_DISK, DiskFolder
from leeward_agent.storage.epochs import read_run_epoch, write_run_epoch
from leeward_agent.storage.images import ImageFolder, Upload
from leeward_agent.storage.marker import (
    HEARTBEATS,
    IMAGES,
    INSTANCES,
    Mount,
    check_mounted,
    create_pool,
    is_network_filesystem,
    open_pool,
)
from leeward_agent.storage.names import checked_digest, checked_node, checked_uid
from leeward_agent.storage.port import RunEpochRecord, Slot
from leeward_agent.storage.qemu_img import QemuImg
from leeward_agent.storage.workers import Workers

CHUNK_BYTES = 1024**2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How long a pool is waited for, and by how many threads."""

    operation_s: float = 30.0  # One call on files: a chunk of an image, a disk's folder, a run epoch.
    report_s: float = 2.0
    slot_s: float = 2.0
    threads: int = 4


class DirectoryPool:
    """A `Pool` over a directory. Made by `open`."""

    def __init__(
        self,
        *,
        root: Path,
        pool_id: str,
        mount: Mount,
        is_network: bool,
        ids: Ids,
        qemu_img: QemuImg,
        limits: PoolLimits,
        workers: Workers,
    ) -> None:
        self._root = root
        self._pool_id = pool_id
        self._mount = mount
        self._is_network = is_network
        self._ids = ids
        self._qemu_img = qemu_img
        self._limits = limits
        self._images = ImageFolder(root / IMAGES, pool_id)
        self._disks = DiskFolder(root / INSTANCES, self._images)
        # Each heartbeat has a thread of its own, so that neither waits behind bulk work or behind the other.
        self._bulk_workers = workers
        self._slot_writer = Workers(f"pool-{pool_id}-slot-writer", count=1)
        self._slot_reader = Workers(f"pool-{pool_id}-slot-reader", count=1)
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
        cls, root: Path, ids: Ids, *, qemu_img: QemuImg | None = None, limits: PoolLimits | None = None
    ) -> "DirectoryPool":
        """The pool at `root`, after sweeping away what dead uploads left. Raises NotFound (no pool), StorageError."""
        limits = limits or PoolLimits()
        workers = Workers(f"pool-{root.name}", count=limits.threads)
        what = f"opening the pool at {root}"
        # The guard looks for this path in QEMU's arguments and open files, where the kernel shows it without links.
        resolved = await workers.run(what, root.resolve, bound_s=limits.operation_s)
        pool_id, mount = await workers.run(what, partial(open_pool, resolved), bound_s=limits.operation_s)
        is_network = await workers.run(what, partial(is_network_filesystem, resolved), bound_s=limits.operation_s)
        pool = cls(
            root=resolved,
            pool_id=pool_id,
            mount=mount,
            is_network=is_network,
            ids=ids,
            qemu_img=qemu_img or QemuImg(),
            limits=limits,
            workers=workers,
        )
        await pool._run("sweeping uploads", pool._images.sweep)
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
        return self._pool_id

    @property
    def root(self) -> Path:
        return self._root

    @property
    def is_network(self) -> bool:
        return self._is_network

    async def report(self) -> PoolReport:
        try:
            usage = await self._run("measuring", partial(os.statvfs, self._root), bound_s=self._limits.report_s)
        except StorageError:
            return PoolReport(self._pool_id, PoolKind.DIRECTORY, self._capacity_gib, 0, healthy=False)
        self._capacity_gib = usage.f_blocks * usage.f_frsize // GIB
        available_gib = usage.f_bavail * usage.f_frsize // GIB
        return PoolReport(self._pool_id, PoolKind.DIRECTORY, self._capacity_gib, available_gib)

    async def store_image(
        self, *, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        checked_digest(digest)
        present = await self._run("looking for an image", partial(self._images.keep, digest))
        if present is not None:
            return present
        begin = partial(
            self._images.upload, digest=digest, image_format=format, size_bytes=size_bytes, token=self._ids.new()
        )
        upload = await self._run("beginning an image", begin, discard=Upload.abort)
        try:
            async for chunk in _in_blocks(chunks):
                await self._run("writing an image", partial(upload.write, chunk))
            return await self._run("publishing an image", upload.publish)
        finally:
            # Also when cancelled: the thread does it although nobody waits.
            self._bulk_workers.post(upload.abort)

    async def read_image(self, *, digest: str, offset: int) -> AsyncIterator[bytes]:
        checked_digest(digest)
        while True:
            read = partial(self._images.read, digest, offset=offset, length=CHUNK_BYTES)
            data = await self._run("reading an image", read)
            if not data:
                return
            offset += len(data)
            yield data

    async def delete_image(self, *, digest: str) -> None:
        await self._run("deleting an image", partial(self._images.delete, checked_digest(digest)))

    async def create_disk(self, spec: GuestSpec) -> None:
        checked_uid(spec.uid)
        checked_digest(spec.image_digest)
        begin = partial(self._disks.plan, spec, token=self._ids.new())
        plan = await self._run(
            "preparing a disk", begin, discard=lambda plan: None if plan is None else self._disks.give_up(plan)
        )
        if plan is None:
            return
        try:
            await self._qemu_img.create_overlay(
                plan.path, backing=plan.backing, backing_format=plan.backing_format, size_bytes=plan.size_bytes
            )
            await self._run("finishing a disk", partial(self._disks.finish, plan))
        finally:
            # Does nothing once the disk is finished. Posted, so that it is done when this task is cancelled, too.
            self._bulk_workers.post(partial(self._disks.give_up, plan))

    async def delete_disk(self, uid: str) -> None:
        await self._run("deleting a disk", partial(self._disks.delete, checked_uid(uid)))

    async def has_disk(self, uid: str) -> bool:
        return await self._run("looking for a disk", partial(self._disks.has_disk, checked_uid(uid)))

    def disk_path(self, uid: str) -> Path:
        return self._disks.instance(checked_uid(uid)) / ROOT_DISK

    async def read_run_epoch(self, uid: str) -> RunEpochRecord | None:
        instance = self._disks.instance(checked_uid(uid))
        return await self._run("reading a run epoch", partial(read_run_epoch, instance))

    async def write_run_epoch(self, uid: str, record: RunEpochRecord) -> None:
        checked_uid(uid)
        checked_node(record.node)
        token = self._ids.new()

        def write() -> None:
            write_run_epoch(self._disks.make_instance(uid), record, token=token)

        await self._run("writing a run epoch", write)

    async def write_slot(self, slot: Slot) -> None:
        checked_node(slot.node)
        write = partial(slotfiles.write_slot, self._root / HEARTBEATS, slot)
        await self._on(self._slot_writer, "writing the storage heartbeat", write, bound_s=self._limits.slot_s)

    async def read_slots(self) -> tuple[Slot, ...]:
        read = partial(slotfiles.read_slots, self._root / HEARTBEATS)
        return await self._on(self._slot_reader, "reading storage heartbeats", read, bound_s=self._limits.slot_s)

    async def close(self) -> None:
        for workers in (self._bulk_workers, self._slot_writer, self._slot_reader):
            workers.close()

    async def _run(
        self,
        what: str,
        call: Callable[[], T],
        *,
        bound_s: float | None = None,
        discard: Callable[[T], None] | None = None,
    ) -> T:
        bound_s = self._limits.operation_s if bound_s is None else bound_s
        return await self._on(self._bulk_workers, what, call, bound_s=bound_s, discard=discard)

    async def _on(
        self,
        workers: Workers,
        what: str,
        call: Callable[[], T],
        *,
        bound_s: float,
        discard: Callable[[T], None] | None = None,
    ) -> T:
        def checked_call() -> T:
            check_mounted(self._root, self._mount)
            try:
                return call()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise StorageError(f"pool {self._pool_id}: {what}: no space left", reason="POOL_FULL") from error
                raise

        return await workers.run(f"pool {self._pool_id}: {what}", checked_call, bound_s=bound_s, discard=discard)


async def _in_blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks that are worth a trip to a thread."""
    block = bytearray()
    async for chunk in chunks:
        block += chunk
        if len(block) >= CHUNK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
