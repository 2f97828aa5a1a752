"""All that this host holds."""

from leeward.agent.types import Inventory
from leeward_agent.verbs.base import Verbs


class InventoryVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def take_inventory(self) -> Inventory:
        pools = tuple([await pool.inventory() for pool in self._pools.values()])
        guests = await self._hypervisor.list_guests()
        sockets, logs = await self._consoles.found()
        return Inventory(pools=pools, guests=guests, sockets=sockets, console_logs=logs)
