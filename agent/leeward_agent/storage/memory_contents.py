"""What a simulated pool holds, and how a node reaches it: the base of the in-memory twin's parts."""

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from leeward.agent.disk_files import ROOT_DISK
from leeward.agent.types import GuestSpec, ImageFile
from leeward.clock import Clock
from leeward.errors import NotFound, StorageError
from leeward_agent.storage.disk_record import DiskRecord
from leeward_agent.storage.port import Pill, RunEpochRecord, Slot

CHUNK_BYTES = 1024**2


class PoolFault(StrEnum):
    """What is wrong between one node and the pool."""

    NONE = "NONE"  # All is well.
    FAILING = "FAILING"  # Every call fails at once.
    HANGING = "HANGING"  # Every call fails after its bound.


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """One of a guest's files: bytes that stand for its content, the image it is based on, what the guest sees of it."""

    content: bytes
    base: str = ""
    virtual_bytes: int = 0


@dataclass(slots=True)
class MemoryFolder:
    """All that is here for one guest but its run epoch. `spec` is the one that its root disk was last made by."""

    spec: GuestSpec
    files: dict[str, MemoryFile] = field(default_factory=dict)
    record: DiskRecord = field(default_factory=DiskRecord)
    begins_memory: bool = False  # The hypervisor was given a path to write the guest's memory to.


_COUNTED_FOR_S = 1.0


@dataclass(slots=True)
class MemoryPoolContents:
    """What all nodes of a simulated cluster share: give one to the `MemoryPool` of each."""

    pool_id: str
    capacity_gib: int = 1000
    images: dict[str, ImageFile] = field(default_factory=dict)
    image_bytes: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, MemoryFolder] = field(default_factory=dict)
    run_epochs: dict[str, RunEpochRecord] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    pills: dict[str, Pill] = field(default_factory=dict)
    faults: dict[str, PoolFault] = field(default_factory=dict)  # By node.
    stale_s: dict[str, float] = field(default_factory=dict)  # How old slots may be that a node reads, by node.
    parts: dict[str, bytes] = field(default_factory=dict)  # What has come so far of files from other pools.
    # The folders to which simulated hypervisors have written a guest's whole memory; None: nobody can tell.
    memories: MutableMapping[Path, Any] | None = None
    changed_s: dict[str, float] = field(default_factory=dict)  # Of images and folders, on the monotonic clock.
    _counted: tuple[int, float, int] = (-1, 0.0, 0)  # How many folders there were, when, and what they took.

    @property
    def disks(self) -> dict[str, GuestSpec]:
        """The guests that have a root disk here, by uid."""
        return {uid: folder.spec for uid, folder in self.folders.items() if ROOT_DISK in folder.files}

    def used_gib(self, *, now_s: float) -> int:
        """What the guests' disks would take if they were full.

        All nodes ask for it all the time, so it is counted once a second, and when a guest has come or gone.
        """
        folders, counted_s, used_gib = self._counted
        if folders != len(self.folders) or now_s - counted_s >= _COUNTED_FOR_S:
            used_gib = sum(
                folder.spec.disk_gib + sum(folder.spec.data_disks_gib)
                for folder in self.folders.values()
                if ROOT_DISK in folder.files
            )
            self._counted = (len(self.folders), now_s, used_gib)
        return used_gib


async def _no_hook(_node: str, _method: str) -> None:
    return


class MemoryParts:
    """A pool as one node sees it. `hook(node, method)` runs before each call: it may delay it or raise."""

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

    def _image(self, digest: str) -> ImageFile:
        """Raises NotFound."""
        image = self._contents.images.get(digest)
        if image is None:
            raise NotFound.named(f"image {digest} in pool {self.pool_id}")
        return image

    def _users(self, digest: str) -> tuple[str, ...]:
        folders = self._contents.folders.items()
        return tuple(
            sorted(uid for uid, folder in folders if any(file.base == digest for file in folder.files.values()))
        )

    def _touch(self, key: str) -> None:
        self._contents.changed_s[key] = self._clock.monotonic_s()

    def _age_s(self, key: str) -> float:
        # Nodes' clocks may differ.
        return max(0.0, self._clock.monotonic_s() - self._contents.changed_s.get(key, 0.0))

    async def _receive(
        self, what: str, *, size_bytes: int, sha256: str, read: Callable[[int], AsyncGenerator[bytes, None]]
    ) -> bytes:
        """The bytes from elsewhere; what has come is kept until `_forget_parts`. Raises StorageError, and as `read`."""
        parts, key = self._contents.parts, _part(what, sha256)
        if len(parts.setdefault(key, b"")) < size_bytes:
            async with aclosing(read(len(parts[key]))) as chunks:
                async for chunk in chunks:
                    await self._reach("receive")
                    parts[key] += chunk
        if len(parts[key]) < size_bytes:
            raise StorageError(f"{what}: it ended after {len(parts[key])} of {size_bytes} bytes")
        data = parts[key]
        found = hashlib.sha256(data).hexdigest()
        if len(data) > size_bytes:
            del parts[key]
            raise StorageError(f"{what}: more than the expected {size_bytes} bytes came")
        if found != sha256:
            del parts[key]
            raise StorageError(f"{what}: what came has the SHA-256 {found}, not {sha256}")
        return data

    def _forget_parts(self, what: str) -> None:
        """All that has come of it has been taken over, or is not wanted any more."""
        for key in [key for key in self._contents.parts if key.startswith(_part(what, ""))]:
            del self._contents.parts[key]


def _part(what: str, sha256: str) -> str:
    return f"{what}: {sha256}"
