"""The agent: `AgentApi` over a hypervisor and pools.

Every mutating call observes, acts on what is missing, and verifies. What it can do is in `leeward_agent.verbs`.
"""

from dataclasses import replace

import leeward
from leeward.agent.types import NodeReport, PoolReport, SlotObservation
from leeward.errors import InvalidArgument
from leeward_agent.reconcile import Reconciler
from leeward_agent.storage.port import Pool
from leeward_agent.verbs.base import NodeIdentity
from leeward_agent.verbs.consoles import ConsoleVerbs
from leeward_agent.verbs.disks import DiskVerbs
from leeward_agent.verbs.images import ImageVerbs
from leeward_agent.verbs.inventory import InventoryVerbs
from leeward_agent.verbs.memory import MemoryVerbs
from leeward_agent.verbs.snapshots import SnapshotVerbs

__all__ = ["Agent", "NodeIdentity"]


class Agent(MemoryVerbs, DiskVerbs, SnapshotVerbs, ImageVerbs, ConsoleVerbs, InventoryVerbs):
    """One host's agent; the port `leeward.agent.api.AgentApi` says what each method promises.

    `run_events` must be running for watches.
    """

    def reconciler(self, *, interval_s: float) -> Reconciler:
        """What keeps this host's guests as they should be, taking its turns with the callers of this agent."""
        return Reconciler(
            node=self._node,
            hypervisor=self._hypervisor,
            pools=tuple(self._pools.values()),
            power=self._power,
            turns=self._turns,
            quarantine=self._quarantine,
            consoles=self._consoles,
            clock=self._clock,
            interval_s=interval_s,
        )

    async def run_events(self) -> None:
        """Follow the hypervisor's events until cancelled."""
        await self._events.run()

    async def drain(self, timeout_s: float) -> None:
        """Take no more mutating calls, and wait for those under way; guests run on."""
        self._draining = True
        await self._turns.drain(timeout_s)
        await self._migrations.drain(timeout_s)

    async def end_at_once(self) -> None:
        """For simulations: cut off all work, as the death of the process does."""
        await self._turns.end_at_once()
        await self._migrations.end_at_once()

    async def describe_node(self) -> NodeReport:
        identity = self._identity
        capacity = await self._hypervisor.capacity()
        return NodeReport(
            node=identity.node,
            boot_id=identity.boot_id,
            agent_id=identity.agent_id,
            address=identity.address,
            vcpus=identity.vcpus or capacity.vcpus,
            memory_mib=identity.memory_mib or capacity.memory_mib,
            pools=tuple([await self._report(pool) for pool in self._pools.values()]),
            hypervisor=capacity.hypervisor,
            hypervisor_version=capacity.hypervisor_version,
            agent_version=leeward.__version__,
            guard_armed=self._vitals.guard_armed,
            lease_ttl_s=identity.lease_ttl_s,
            guard_delay_s=identity.guard_delay_s,
            labels=identity.labels,
            draining=self._draining,
            cpu=capacity.cpu,
        )

    async def _report(self, pool: Pool) -> PoolReport:
        report = await pool.report()
        # To a hundredth: each report that differs is a write to etcd, which all controllers hear of.
        step_gib = max(1, report.capacity_gib // 100)
        available_gib = report.available_gib // step_gib * step_gib
        return replace(report, available_gib=available_gib, shared=self._vitals.is_shared(pool.pool_id))

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        return await self._vitals.observe_slots()

    async def leave_pill(self, *, node: str, boot_id: str, pill_id: str) -> None:
        if node == self._node:
            raise InvalidArgument.field("node", "is this node itself; a pill is for one that cannot be reached")
        await self._vitals.leave_pill(node=node, boot_id=boot_id, pill_id=pill_id)

    async def withdraw_pill(self, *, pill_id: str) -> None:
        await self._vitals.withdraw_pill(pill_id=pill_id)
