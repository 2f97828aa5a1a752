"""The second heartbeat: a slot a node in each pool, and the eyes for those of the others."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from leeward.agent.types import SlotObservation
from leeward.clock import Clock
from leeward.errors import StorageError
from leeward_agent.storage.port import Pool, Slot

_log = structlog.get_logger(__name__)


class StorageHeartbeat:
    """Writes this node's slot in one pool. A beat counts from before its writing began.

    A slot of another boot is left alone until it has been still for `quiet_s`: if it beats, another host lives under
    this name, and to write over it would tell the cluster that this other host has rebooted and its guests are dead.
    """

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        *,
        node: str,
        boot_id: str,
        agent_id: str,
        guests: Callable[[], tuple[str, ...]],
        acknowledged: Callable[[str], str],
        on_renewal: Callable[[str, float], None],
        period_s: float = 1.0,
        quiet_s: float = 5.0,
    ) -> None:
        """`on_renewal(pool_id, sent_s)` is called at each beat that is known to be on storage.

        `acknowledged(pool_id)` is the poison pill that the slot in that pool says has been taken.
        """
        self._pool = pool
        self._clock = clock
        self._node = node
        self._boot_id = boot_id
        self._agent_id = agent_id
        self._guests = guests
        self._acknowledged = acknowledged
        self._on_renewal = on_renewal
        self._period_s = period_s
        self._quiet_s = quiet_s
        self._sequence = 0
        self._may_write = False
        self._other: Sighting | None = None  # The slot of another boot that was found here.
        self._trouble = ""

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            started_s = self._clock.monotonic_s()
            try:
                self._note(await self.beat())
            except StorageError as error:
                self._note(error.message)
            spent_s = self._clock.monotonic_s() - started_s
            await self._clock.sleep(max(0.0, self._period_s - spent_s))

    async def beat(self) -> str:
        """Write the slot once. Answers why it must not be written yet, or nothing.

        Raises StorageError: then it is not known to be on storage.
        """
        if not self._may_write:
            self._may_write = await self._is_free()
        if not self._may_write:
            return "another boot of a host with this name beats here, or did so a moment ago"
        sent_s = self._clock.monotonic_s()
        # From the clock, so that it also grows from one agent to the next within a boot.
        self._sequence = max(self._sequence + 1, int(sent_s * 1000))
        await self._pool.write_slot(
            Slot(
                node=self._node,
                boot_id=self._boot_id,
                agent_id=self._agent_id,
                sequence=self._sequence,
                guests=self._guests(),
                acknowledged=self._acknowledged(self._pool.pool_id),
            )
        )
        self._on_renewal(self._pool.pool_id, sent_s)
        return ""

    async def _is_free(self) -> bool:
        began_s = self._clock.monotonic_s()
        slots = await self._pool.read_slots()
        found = next((slot for slot in slots if slot.node == self._node), None)
        if found is None or found.boot_id == self._boot_id:
            return True
        self._other = sighted(self._other, found, ended_s=self._clock.monotonic_s())
        return self._other.silent_s(began_s) >= self._quiet_s

    def _note(self, trouble: str) -> None:
        if trouble and not self._trouble:
            _log.warning("storage heartbeat failed", pool=self._pool.pool_id, why=trouble)
        elif self._trouble and not trouble:
            _log.info("storage heartbeat is back", pool=self._pool.pool_id)
        self._trouble = trouble


@dataclass(frozen=True, slots=True)
class Sighting:
    """One node's slot, and since when it is known to be unchanged: the end of the reading that found it first."""

    slot: Slot
    since_s: float

    def silent_s(self, read_s: float) -> float:
        """For how long it was seen unchanged, when the last reading that found it began at `read_s`."""
        return max(0.0, read_s - self.since_s)


def sighted(before: Sighting | None, slot: Slot, *, ended_s: float) -> Sighting:
    """After a reading of the pool that found `slot`, and ended at `ended_s`."""
    # Most slots are either the very one that was found before, or differ in their sequence: both are told at once.
    if before is not None and (before.slot is slot or (before.slot.sequence == slot.sequence and before.slot == slot)):
        return before
    return Sighting(slot, ended_s)


class SlotObserver:
    """Reads the slots of all nodes in all pools, and tells how long each has been silent.

    Silence is only what was seen: it ends at the last reading that worked. An observer that cannot read the pool itself
    says nothing new about anybody.
    """

    def __init__(self, pools: Sequence[Pool], clock: Clock, *, node: str, period_s: float = 1.0) -> None:
        self._pools = tuple(pools)
        self._clock = clock
        self._node = node
        self._period_s = period_s
        self._sightings: dict[str, dict[str, Sighting]] = {pool.pool_id: {} for pool in self._pools}
        self._read_s: dict[str, float] = {}
        self._visited: set[str] = set()

    async def run(self) -> None:
        """Observe until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for pool in self._pools:
                tasks.create_task(self._watch(pool))

    def observations(self) -> tuple[SlotObservation, ...]:
        """All that is known now, by pool and node."""
        return tuple(
            SlotObservation(
                pool_id=pool_id,
                node=node,
                boot_id=sighting.slot.boot_id,
                sequence=sighting.slot.sequence,
                silent_s=sighting.silent_s(self._read_s[pool_id]),
                acknowledged=sighting.slot.acknowledged,
            )
            for pool_id, sightings in sorted(self._sightings.items())
            for node, sighting in sorted(sightings.items())
        )

    def is_shared(self, pool: Pool) -> bool:
        """Whether other nodes use the pool, or may without this one knowing."""
        return pool.is_network or pool.pool_id in self._visited

    async def observe(self, pool: Pool) -> None:
        """Read a pool's slots once. Raises StorageError."""
        began_s = self._clock.monotonic_s()
        slots = await pool.read_slots()
        ended_s = self._clock.monotonic_s()
        before = self._sightings[pool.pool_id]
        # A node whose slot is not there is not silent but unknown, so nothing is kept of it.
        self._sightings[pool.pool_id] = {
            slot.node: sighted(before.get(slot.node), slot, ended_s=ended_s) for slot in slots
        }
        self._read_s[pool.pool_id] = began_s
        if any(slot.node != self._node for slot in slots):
            self._visited.add(pool.pool_id)

    async def _watch(self, pool: Pool) -> None:
        trouble = False
        while True:
            started_s = self._clock.monotonic_s()
            try:
                await self.observe(pool)
                trouble = False
            except StorageError as error:
                if not trouble:
                    _log.warning("slots cannot be read", pool=pool.pool_id, why=error.message)
                trouble = True
            spent_s = self._clock.monotonic_s() - started_s
            await self._clock.sleep(max(0.0, self._period_s - spent_s))
