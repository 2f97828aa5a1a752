"""A pool in memory: the simulated twin of `DirectoryPool`, on virtual time, without threads and files."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from leeward.agent.types import DiskFormat, GuestSpec, ImageFile, PoolKind, PoolReport
from leeward.clock import Clock
from leeward.errors import FailedPrecondition, ImageRefused, NotFound, StorageError
from leeward_agent.storage.disks import ROOT_DISK, disk_size_bytes
from leeward_agent.storage.epochs import check_supersedes
from leeward_agent.storage.image_format import HEAD_BYTES, check_image
from leeward_agent.storage.names import checked_digest, checked_node, checked_uid
from leeward_agent.storage.port import RunEpochRecord, Slot

CHUNK_BYTES = 1024**2


class PoolFault(StrEnum):
    """What is wrong between one node and the pool."""

    NONE = "NONE"  # All is well.
    FAILING = "FAILING"  # Every call fails at once.
    HANGING = "HANGING"  # Every call fails after its bound.


@dataclass(slots=True)
class MemoryPoolContents:
    """What all nodes of a simulated cluster share: give one to the `MemoryPool` of each."""

    pool_id: str
    capacity_gib: int = 1000
    images: dict[str, ImageFile] = field(default_factory=dict)
    image_bytes: dict[str, bytes] = field(default_factory=dict)
    disks: dict[str, GuestSpec] = field(default_factory=dict)
    run_epochs: dict[str, RunEpochRecord] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    faults: dict[str, PoolFault] = field(default_factory=dict)  # By node.


async def _no_hook(_node: str, _method: str) -> None:
    return


class MemoryPool:
    """A `Pool` as one node sees it. `hook(node, method)` runs before each call: it may delay it or raise."""

    def __init__(
        self,
        contents: MemoryPoolContents,
        clock: Clock,
        *,
        node: str,
        root: Path | None = None,
        is_network: bool = True,
        hang_bound_s: float = 2.0,
        hook: Callable[[str, str], Awaitable[None]] = _no_hook,
    ) -> None:
        self._contents = contents
        self._clock = clock
        self._node = node
        self._root = root or Path("/simulated") / contents.pool_id
        self._is_network = is_network
        self._hang_bound_s = hang_bound_s
        self._hook = hook

    @property
    def pool_id(self) -> str:
        return self._contents.pool_id

    @property
    def root(self) -> Path:
        return self._root

    @property
    def is_network(self) -> bool:
        return self._is_network

    async def report(self) -> PoolReport:
        contents = self._contents
        try:
            await self._reach("report")
        except StorageError:
            return PoolReport(contents.pool_id, PoolKind.DIRECTORY, contents.capacity_gib, 0, healthy=False)
        used_gib = sum(spec.disk_gib for spec in contents.disks.values())
        available_gib = max(0, contents.capacity_gib - used_gib)
        return PoolReport(contents.pool_id, PoolKind.DIRECTORY, contents.capacity_gib, available_gib)

    async def store_image(
        self, *, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        checked_digest(digest)
        await self._reach("store_image")
        present = self._contents.images.get(digest)
        if present is not None:
            return present
        data = b""
        async for chunk in chunks:
            data += chunk
            if len(data) > size_bytes:
                raise ImageRefused(f"more than the declared {size_bytes} bytes came")
        if len(data) != size_bytes:
            raise ImageRefused(f"{len(data)} bytes came, {size_bytes} were declared")
        virtual = check_image(head=data[:HEAD_BYTES], declared=format, size_bytes=size_bytes)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ImageRefused(f"the bytes have the SHA-256 {found}, not the declared {digest}")
        await self._reach("publish_image")
        image = ImageFile(digest=digest, size_bytes=size_bytes, virtual_size_bytes=virtual, format=format)
        self._contents.images[digest] = image
        self._contents.image_bytes[digest] = data
        return image

    async def read_image(self, *, digest: str, offset: int) -> AsyncIterator[bytes]:
        checked_digest(digest)
        while True:
            await self._reach("read_image")
            content = self._contents.image_bytes.get(digest)
            if content is None:
                raise NotFound.named(f"image {digest} in pool {self.pool_id}")
            data = content[offset : offset + CHUNK_BYTES]
            if not data:
                return
            offset += len(data)
            yield data

    async def delete_image(self, *, digest: str) -> None:
        checked_digest(digest)
        await self._reach("delete_image")
        users = sorted(uid for uid, spec in self._contents.disks.items() if spec.image_digest == digest)
        if users:
            raise FailedPrecondition(
                f"image {digest} in pool {self.pool_id} is in use: {len(users)} disks are based on it",
                metadata={"digest": digest, "users": str(len(users))},
            )
        self._contents.images.pop(digest, None)
        self._contents.image_bytes.pop(digest, None)

    async def create_disk(self, spec: GuestSpec) -> None:
        checked_uid(spec.uid)
        checked_digest(spec.image_digest)
        await self._reach("create_disk")
        if spec.uid in self._contents.disks:
            return
        image = self._contents.images.get(spec.image_digest)
        if image is None:
            raise NotFound.named(f"image {spec.image_digest} in pool {self.pool_id}")
        disk_size_bytes(spec, virtual_size_bytes=image.virtual_size_bytes)
        self._contents.disks[spec.uid] = spec

    async def delete_disk(self, uid: str) -> None:
        checked_uid(uid)
        await self._reach("delete_disk")
        self._contents.disks.pop(uid, None)
        self._contents.run_epochs.pop(uid, None)

    async def has_disk(self, uid: str) -> bool:
        checked_uid(uid)
        await self._reach("has_disk")
        return uid in self._contents.disks

    def disk_path(self, uid: str) -> Path:
        return self._root / "instances" / checked_uid(uid) / ROOT_DISK

    async def read_run_epoch(self, uid: str) -> RunEpochRecord | None:
        checked_uid(uid)
        await self._reach("read_run_epoch")
        return self._contents.run_epochs.get(uid)

    async def write_run_epoch(self, uid: str, record: RunEpochRecord) -> None:
        checked_uid(uid)
        checked_node(record.node)
        await self._reach("write_run_epoch")
        check_supersedes(self._contents.run_epochs.get(uid), record, uid=uid)
        self._contents.run_epochs[uid] = record

    async def write_slot(self, slot: Slot) -> None:
        checked_node(slot.node)
        await self._reach("write_slot")
        self._contents.slots[slot.node] = slot

    async def read_slots(self) -> tuple[Slot, ...]:
        await self._reach("read_slots")
        return tuple(slot for _, slot in sorted(self._contents.slots.items()))

    async def close(self) -> None:
        return

    async def _reach(self, method: str) -> None:
        """Where a real pool would touch storage: lets other tasks run, and fails as the faults say."""
        await self._hook(self._node, method)
        await self._clock.sleep(0)
        match self._contents.faults.get(self._node, PoolFault.NONE):
            case PoolFault.FAILING:
                raise StorageError(f"pool {self.pool_id}: {method}: input/output error")
            case PoolFault.HANGING:
                await self._clock.sleep(self._hang_bound_s)
                raise StorageError(f"pool {self.pool_id}: {method}: not done within {self._hang_bound_s:g} s")
            case PoolFault.NONE:
                return
