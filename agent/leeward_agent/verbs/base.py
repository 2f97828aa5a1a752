"""What all verbs share: the agent's surroundings, and the checks that many of them begin with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leeward.agent.types import GuestSpec, GuestStatus
from leeward.clock import Clock
from leeward.errors import FailedPrecondition, NotFound, StaleRunEpoch, Unavailable, WrongState
from leeward_agent.consoles import Consoles
from leeward_agent.guest_events import GuestEvents
from leeward_agent.migration import Migrations
from leeward_agent.ports import Claims, Hypervisor, Peers, Routes, Vitals
from leeward_agent.power import Power, in_memory
from leeward_agent.quarantine import Quarantine
from leeward_agent.storage.port import Pool
from leeward_agent.turns import Turns


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What the agent says of itself and is configured with."""

    node: str
    boot_id: str
    agent_id: str
    address: str
    lease_ttl_s: float
    guard_delay_s: float
    console_directory: Path
    console_socket_directory: Path
    labels: dict[str, str] = field(default_factory=dict)
    vcpus: int = 0  # Instead of what the hypervisor says; 0: what it says.
    memory_mib: int = 0  # Likewise.
    post_copy_mend_s: float = 60.0


class Verbs:
    """One host's agent, as far as all themes need it."""

    def __init__(
        self,
        identity: NodeIdentity,
        *,
        hypervisor: Hypervisor,
        pools: Sequence[Pool],
        claims: Claims,
        vitals: Vitals,
        routes: Routes,
        peers: Peers,
        quarantine: Quarantine,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._hypervisor = hypervisor
        self._pools = {pool.pool_id: pool for pool in pools}
        self._vitals = vitals
        self._peers = peers
        self._quarantine = quarantine
        self._clock = clock
        self._events = GuestEvents(hypervisor, clock=clock)
        self._power = Power(hypervisor, clock=clock)
        self._turns = Turns(claims)
        self._migrations = Migrations(
            hypervisor, self._power, routes, pools=self._pools, mend_s=identity.post_copy_mend_s, clock=clock
        )
        self._consoles = Consoles(identity.console_directory, identity.console_socket_directory)
        self._draining = False

    @property
    def _node(self) -> str:
        return self._identity.node

    def _pool(self, pool_id: str) -> Pool:
        pool = self._pools.get(pool_id)
        if pool is None:
            raise NotFound(f"{self._node} has no pool {pool_id!r}", resource=pool_id)
        return pool

    async def _refuse_in_memory(self, uid: str) -> GuestStatus:
        """Raises FailedPrecondition while the guest has a process here."""
        status = await self._hypervisor.get_guest(uid)
        if in_memory(status):
            raise FailedPrecondition(f"guest {uid} is {status.state} on {self._node}: stop it first")
        return status

    def _require_vouched(self, pool_id: str, what: str) -> None:
        """Raises Unavailable while this host could be taken for dead. It passes, so who needs this done waits."""
        if not self._vitals.may_start_guests(pool_id):
            raise Unavailable(
                f"{self._node} may not {what} in pool {pool_id}: it could renew neither of its heartbeats in time",
                reason="NODE_NOT_LEGITIMATE",
            )

    async def _refuse_outdated(self, spec: GuestSpec, pool: Pool) -> None:
        """Raises StaleRunEpoch when the right to run has moved past that of the spec: its disks are another's."""
        record = await pool.read_run_epoch(spec.uid)
        if record is not None and record.epoch > spec.run_epoch:
            raise StaleRunEpoch(
                f"the disk of guest {spec.uid} belongs to epoch {record.epoch} by now, not {spec.run_epoch}",
                metadata={"epoch": str(record.epoch), "node": record.node},
            )

    def _wrong_state(self, status: GuestStatus, what: str) -> WrongState:
        story = f"{status.state}{', migrating' if status.migrating else ''}"
        return WrongState(f"guest {status.uid} cannot be {what}: it is {story} on {self._node}")
