"""Whether controllers that cannot reach this boot of the node have given it up: a poison pill in a shared pool."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from leeward.clock import Clock
from leeward.errors import StorageError, Unavailable
from leeward_agent.guard.port import GuardClient
from leeward_agent.storage.port import Pill, Pool

_log = structlog.get_logger(__name__)


class PillWatch:
    """Looks for a pill in every shared pool.

    While one is there that was left for this boot, nobody vouches for the node's guests. So the guard kills those on
    shared pools at the deadline, and whatever of them would come up later. Once it says that none is left, the pill is
    acknowledged in the slot beside it, and whoever left it may start the guests elsewhere. Guests on disks of the
    host's own run on. It lasts until the controllers withdraw it.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[Pool]],
        guard: GuardClient,
        clock: Clock,
        *,
        node: str,
        boot_id: str,
        on_change: Callable[[], None],
        period_s: float = 1.0,
    ) -> None:
        """`on_change` is called when a pill is found, and when it has gone."""
        self._pools = pools
        self._guard = guard
        self._clock = clock
        self._node = node
        self._boot_id = boot_id
        self._on_change = on_change
        self._period_s = period_s
        self._pills: dict[str, Pill] = {}
        self._is_clear = False

    async def run(self) -> None:
        """Look until cancelled. A pool that hangs holds up no look at another."""
        async with asyncio.TaskGroup() as tasks:
            known: set[str] = set()
            while True:
                for pool in self._pools():
                    if pool.pool_id not in known:
                        known.add(pool.pool_id)
                        tasks.create_task(self._watch(pool))
                await self._ask_guard()
                await self._clock.sleep(self._period_s)

    @property
    def pill_id(self) -> str:
        """A pill that is in force; empty when none is."""
        return next((pill.pill_id for pill in self._pills.values()), "")

    def acknowledged(self, pool_id: str) -> str:
        """The pill in this pool, if it has been done what it asks for."""
        pill = self._pills.get(pool_id)
        return pill.pill_id if pill is not None and self._is_clear else ""

    async def look(self, pool: Pool) -> None:
        """Read the pool once. What was found last counts while it cannot be read."""
        try:
            found = await pool.read_pill(self._node)
        except StorageError as error:
            _log.debug("poison pills cannot be read", pool=pool.pool_id, why=error.message)
            return
        before = self.pill_id
        if found is not None and found.boot_id == self._boot_id:
            self._pills[pool.pool_id] = found
        else:
            self._pills.pop(pool.pool_id, None)
        if self.pill_id and not before:
            # The guests that run now were vouched for until a moment ago.
            self._is_clear = False
            _log.error("the cluster has given this node up: its guests on shared storage end", pill=self.pill_id)
        elif before and not self.pill_id:
            _log.warning("the cluster takes this node back", pill=before)
        if bool(before) is not bool(self.pill_id):
            self._on_change()

    async def _watch(self, pool: Pool) -> None:
        while True:
            await self.look(pool)
            await self._clock.sleep(self._period_s)

    async def _ask_guard(self) -> None:
        if not self.pill_id:
            self._is_clear = False
            return
        try:
            self._is_clear = (await self._guard.status()).clear
        except Unavailable as error:
            self._is_clear = False
            _log.warning("the guard cannot say whether guests are left", why=error.message)
