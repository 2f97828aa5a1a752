"""A pool in memory: the simulated twin of `DirectoryPool`, on virtual time, without threads and files."""

from leeward.agent.types import PoolKind, PoolReport
from leeward.errors import StorageError
from leeward_agent.storage.epochs import check_supersedes
from leeward_agent.storage.memory_contents import MemoryPoolContents, PoolFault
from leeward_agent.storage.memory_transfer import MemoryTransfer
from leeward_agent.storage.names import checked_node, checked_uid
from leeward_agent.storage.port import Pill, RunEpochRecord, Slot

__all__ = ["MemoryPool", "MemoryPoolContents", "PoolFault"]


class MemoryPool(MemoryTransfer):
    """A `Pool` as one node sees it. `hook(node, method)` runs before each call: it may delay it or raise."""

    _slots: tuple[Slot, ...] = ()  # As read last, and when.
    _slots_read_s = float("-inf")

    async def report(self) -> PoolReport:
        contents, kind = self._contents, PoolKind.DIRECTORY
        try:
            await self._reach("report")
        except StorageError:
            return PoolReport(contents.pool_id, kind, contents.capacity_gib, 0, healthy=False)
        used_gib = contents.used_gib(now_s=self._clock.monotonic_s())
        available_gib = max(0, contents.capacity_gib - used_gib)
        return PoolReport(contents.pool_id, kind, contents.capacity_gib, available_gib, root=str(self.root))

    async def read_run_epoch(self, uid: str) -> RunEpochRecord | None:
        checked_uid(uid)
        await self._reach("read_run_epoch")
        return self._contents.run_epochs.get(uid)

    async def write_run_epoch(self, uid: str, record: RunEpochRecord) -> None:
        checked_uid(uid)
        checked_node(record.node)
        await self._reach("write_run_epoch")
        check_supersedes(self._contents.run_epochs.get(uid), record, uid=uid)
        if uid not in self._contents.run_epochs:
            self._touch(uid)
        self._contents.run_epochs[uid] = record

    async def write_slot(self, slot: Slot) -> None:
        checked_node(slot.node)
        await self._reach("write_slot")
        self._contents.slots[slot.node] = slot

    async def read_slots(self) -> tuple[Slot, ...]:
        await self._reach("read_slots")
        now_s, stale_s = self._clock.monotonic_s(), self._contents.stale_s.get(self._node, 0.0)
        if now_s - self._slots_read_s >= stale_s:
            self._slots_read_s = now_s
            self._slots = tuple(slot for _, slot in sorted(self._contents.slots.items()))
        return self._slots

    async def write_pill(self, pill: Pill) -> None:
        checked_node(pill.node)
        await self._reach("write_pill")
        self._contents.pills[pill.node] = pill

    async def read_pill(self, node: str) -> Pill | None:
        checked_node(node)
        await self._reach("read_pill")
        return self._contents.pills.get(node)

    async def withdraw_pill(self, node: str, *, pill_id: str) -> None:
        found = await self.read_pill(node)
        if found is not None and found.pill_id == pill_id:
            self._contents.pills.pop(node)

    async def close(self) -> None:
        return
