"""What the agent does by itself: leftovers are stopped and kept aside, and guests that a pool held up run on."""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from leeward.agent.types import GuestStatus
from leeward.clock import Clock
from leeward.errors import LeewardError, StorageError
from leeward_agent.consoles import Consoles
from leeward_agent.domain.right import has_lost_right
from leeward_agent.ports import Hypervisor
from leeward_agent.power import Power, in_memory
from leeward_agent.quarantine import Leftover, Quarantine
from leeward_agent.storage.port import Pool, RunEpochRecord
from leeward_agent.turns import Turns

_log = structlog.get_logger(__name__)

# For how long the other half of a guest is waited for whose post-copy broke: longer than the source tries to mend it.
_HALF_S = 90.0

# How long nothing has been written to a console log before it is asked whether anybody has use for it.
_QUIET = timedelta(minutes=1)


class Reconciler:
    """Looks at every guest of this host, at start and every `interval_s`. Disks are never touched."""

    def __init__(
        self,
        *,
        node: str,
        hypervisor: Hypervisor,
        pools: Sequence[Pool],
        power: Power,
        turns: Turns,
        quarantine: Quarantine,
        consoles: Consoles,
        clock: Clock,
        interval_s: float,
    ) -> None:
        self._consoles = consoles
        self._node = node
        self._hypervisor = hypervisor
        self._pools = tuple(pools)
        self._power = power
        self._turns = turns
        self._quarantine = quarantine
        self._clock = clock
        self._interval_s = interval_s
        self._halves: dict[str, float] = {}  # Since when each is known, on the monotonic clock.

    async def run(self) -> None:
        """Reconcile until cancelled. Trouble with one guest or pool leaves the others alone, and is tried again."""
        while True:
            await self.once()
            await self._clock.sleep(self._interval_s)

    async def once(self) -> None:
        """Look at every guest once."""
        try:
            guests = await self._hypervisor.list_guests()
            held_up = frozenset(await self._hypervisor.paused_by_io_error())
        except LeewardError as error:
            _log.warning("guests cannot be listed", error=error.message)
            return
        for uid in self._halves.keys() - {status.uid for status in guests}:
            del self._halves[uid]
        for status in guests:
            try:
                await self._look_at(status, held_up=status.uid in held_up)
            except LeewardError as error:
                _log.warning("a guest could not be reconciled", uid=status.uid, error=error.message)
        try:
            await self._forget_logs(known=frozenset(status.uid for status in guests))
        except LeewardError as error:
            _log.warning("console logs could not be swept", error=error.message)

    async def _forget_logs(self, *, known: frozenset[str]) -> None:
        """Delete the console logs of guests that this host does not know and whose disks are in none of its pools.

        A guest that has left for another host keeps the log of its time here for as long as it exists.
        """
        for uid in await self._consoles.quiet_logs(since=self._clock.now() - _QUIET):
            if uid not in known and not any([await pool.has_disk(uid) for pool in self._pools]):
                await self._consoles.remove(uid)

    async def _look_at(self, status: GuestStatus, *, held_up: bool) -> None:
        record = await highest_record(self._pools, status.uid)
        if status.migrating and await self._is_lonely_half(status.uid):
            await self._turns.run_unclaimed(status.uid, lambda: self._end_half(status.uid))
        elif record is not None and has_lost_right(status, record, node=self._node):
            await self._turns.run_unclaimed(status.uid, lambda: self._put_aside(status.uid))
        elif held_up:
            await self._turns.run_unclaimed(status.uid, lambda: self._let_run_on(status.uid))

    async def _is_lonely_half(self, uid: str) -> bool:
        """Whether this host has held half of a guest, whose post-copy broke, for too long for it to become whole."""
        if not await self._hypervisor.is_split(uid):
            self._halves.pop(uid, None)
            return False
        now_s = self._clock.monotonic_s()
        return now_s - self._halves.setdefault(uid, now_s) > _HALF_S

    async def _end_half(self, uid: str) -> None:
        if await self._hypervisor.is_split(uid):
            _log.error("half of a guest, whose memory was split between hosts, is killed", uid=uid)
            await self._power.kill(uid)

    async def _put_aside(self, uid: str) -> None:
        status = await self._hypervisor.get_guest(uid)
        record = await highest_record(self._pools, uid)
        if record is None or not has_lost_right(status, record, node=self._node):
            return
        log = _log.bind(
            uid=uid, name=status.name, epoch=status.run_epoch, holder=record.node, holder_epoch=record.epoch
        )
        if in_memory(status):
            log.error("a guest ran here without the right to, and is killed", state=status.state)
            # First of all it must not run; everything else can be repeated.
            await self._power.kill(uid)
        definition = await self._hypervisor.definition(uid)
        leftover = Leftover(
            uid=uid,
            name=status.name,
            state=status.state,
            run_epoch=status.run_epoch,
            holder=record.node,
            holder_epoch=record.epoch,
            found_at=self._clock.now().isoformat(),
        )
        await self._quarantine.keep(leftover, definition)
        await self._power.forget(uid)
        log.warning("a leftover was put aside")

    async def _let_run_on(self, uid: str) -> None:
        if uid not in await self._hypervisor.paused_by_io_error():
            return
        for pool in self._pools:
            # A guest is resumed only when its disk can be read again: resuming it earlier would pause it at once.
            if (await pool.report()).healthy and await pool.has_disk(uid):
                await self._hypervisor.resume(uid)
                _log.info("a guest that waited for its disk runs on", uid=uid, pool=pool.pool_id)
                return


async def highest_record(pools: Sequence[Pool], uid: str) -> RunEpochRecord | None:
    """The right to run a guest as the pools of this host tell it; pools that cannot be reached tell nothing.

    Raises StorageError when none tells anything and one could not be reached.
    """
    records: list[RunEpochRecord] = []
    failure: StorageError | None = None
    for pool in pools:
        try:
            record = await pool.read_run_epoch(uid)
        except StorageError as error:
            failure = error
        else:
            if record is not None:
                records.append(record)
    if not records and failure is not None:
        raise failure
    return max(records, key=lambda record: record.epoch, default=None)
