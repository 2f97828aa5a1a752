"""All that this host holds."""

from datetime import timedelta

from leeward.agent.types import Inventory
from leeward_agent.verbs.base import Verbs

# Console logs that nobody has use for are swept a minute after they were last written to; one that stays is told of.
_OVERDUE = timedelta(minutes=5)


class InventoryVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def take_inventory(self) -> Inventory:
        pools = tuple([await pool.inventory() for pool in self._pools.values()])
        guests = await self._hypervisor.list_guests()
        sockets = await self._consoles.sockets()
        logs = await self._consoles.quiet_logs(since=self._clock.now() - _OVERDUE)
        put_aside = await self._quarantine.kept()
        return Inventory(pools=pools, guests=guests, sockets=sockets, console_logs=logs, put_aside=put_aside)
