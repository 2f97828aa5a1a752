"""Both heartbeats, what they add up to, and the guard that is told."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from leeward.agent.types import NodeReport, SlotObservation
from leeward.clock import Clock
from leeward.errors import InvalidArgument, LeewardError, StorageError, StoreUnavailable, Unavailable
from leeward.store.port import Store
from leeward_agent.guard.port import GuardClient, GuardStatus, Vouch
from leeward_agent.heartbeat.facts import NodeFacts
from leeward_agent.heartbeat.lease import LeaseHeartbeat
from leeward_agent.heartbeat.legitimacy import Legitimacy, renewed
from leeward_agent.heartbeat.pill import PillWatch
from leeward_agent.heartbeat.slots import SlotObserver, StorageHeartbeat
from leeward_agent.storage.port import Pill, Pool

_log = structlog.get_logger(__name__)
_GUARD_RETRY_S = 0.25

OBSERVE_SHARE = 0.25
"""How often slots are looked at, in beats: silence counts from when it is seen, so this is how late it is told."""


class HeartbeatService:
    """Keeps the node alive to the others, and the guard informed until when it is.

    `clock` must be the guard's (`BoottimeClock` with a guard process). The TTL is one for the whole cluster. When it is
    configured anew, nothing is promised beyond what the cluster was told: slots go on counting for the shorter of the
    old and new TTL until the report with the new one is published, and a deadline that the guard still holds from a
    longer one is added to the published guard delay.
    """

    def __init__(
        self,
        *,
        store: Store,
        pools: Sequence[Pool],
        guard: GuardClient,
        clock: Clock,
        node: str,
        boot_id: str,
        agent_id: str,
        lease_key: str,
        report: Callable[[], Awaitable[NodeReport]],
        encode: Callable[[NodeReport], bytes],
        decode: Callable[[bytes], NodeReport],
        guests: Callable[[], Awaitable[tuple[str, ...]]],
        ttl_s: int = 5,
        period_s: float = 1.0,
        report_period_s: float = 2.0,
    ) -> None:
        """`report` and `guests` (uids of those that run) are asked every `report_period_s`, apart from the beats.

        In the report, `guard_armed`, `guard_delay_s` and `lease_ttl_s` are replaced by what is true at the beat.
        """
        self._pools = tuple(pools)
        self._guard = guard
        self._clock = clock
        self._node = node
        self._ttl_s = ttl_s
        self._lease = LeaseHeartbeat(
            store,
            clock,
            key=lease_key,
            boot_id=boot_id,
            report=self._report,
            encode=encode,
            decode=decode,
            on_renewal=self._on_lease,
            ttl_s=ttl_s,
            period_s=period_s,
        )
        self._pill = PillWatch(
            self.shared_pools,
            guard,
            clock,
            node=node,
            boot_id=boot_id,
            on_change=self._lease.poke,
            period_s=period_s,
        )
        self._slots = tuple(
            StorageHeartbeat(
                pool,
                clock,
                node=node,
                boot_id=boot_id,
                agent_id=agent_id,
                guests=lambda: self._facts.guests,
                acknowledged=self._pill.acknowledged,
                on_renewal=self._on_slot,
                period_s=period_s,
                quiet_s=ttl_s,
            )
            for pool in self._pools
        )
        self._observer = SlotObserver(self._pools, clock, node=node, period_s=period_s * OBSERVE_SHARE)
        self._facts = NodeFacts(
            clock, report=report, guests=guests, on_first=self._lease.poke, period_s=report_period_s
        )
        self._legitimacy: Legitimacy | None = None
        self._promised_ttl_s: float | None = (
            None  # What the cluster was told before; not known until the guard answers.
        )
        self._status: GuardStatus | None = None  # None while the guard does not answer.
        self._excess_s = 0
        self._disarming = False
        self._renewal = asyncio.Event()

    async def run(self) -> None:
        """Beat, observe and keep the guard informed, until cancelled.

        Cancelling leaves the guard and the lease as they are: the agent that comes next goes on from there.
        """
        await self._meet_guard()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_guard())
            tasks.create_task(self._observer.run())
            tasks.create_task(self._pill.run())
            tasks.create_task(self._facts.run())
            tasks.create_task(self._lease.run())
            for slot in self._slots:
                tasks.create_task(slot.run())

    @property
    def guard_armed(self) -> bool:
        """Whether the guard is known to kill this node's guests on shared pools once nobody vouches for them."""
        return self._status is not None and self._status.armed and not self._disarming

    @property
    def guard_delay_s(self) -> float:
        """How long after the last renewal's TTL a guest on a shared pool may at most still run."""
        return 0.0 if self._status is None else self._status.delay_s + self._excess_s

    @property
    def legitimate_until_s(self) -> float:
        """Until when guests may run, on the service's clock; the guard's word where there is one. 0: not at all."""
        if self._disarming:
            return 0.0
        if self._status is not None:
            return self._status.deadline_s if self._status.armed else 0.0
        return self._legitimacy.until_s if self._legitimacy else 0.0

    def may_start_guests(self, pool_id: str) -> bool:
        """Whether a guest with its disk in that pool may be started now.

        Where it is shared, the guard would kill it after `legitimate_until_s`; and the controllers must have been told
        of this boot, since guests of a host that they only know from a boot before are restarted elsewhere.
        """
        if not self.is_shared(pool_id):
            return True
        return not self._pill.pill_id and self._lease.published and self._clock.monotonic_s() < self.legitimate_until_s

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        """The storage heartbeats of all nodes in all pools of this host, as seen from here."""
        return self._observer.observations()

    def is_shared(self, pool_id: str) -> bool:
        """Whether a pool counts as shared with other nodes, as far as is known here by now."""
        return any(pool.pool_id == pool_id for pool in self.shared_pools())

    def shared_pools(self) -> tuple[Pool, ...]:
        """The pools that other nodes use, or may use without this one knowing."""
        return tuple(pool for pool in self._pools if self._observer.is_shared(pool))

    async def disarm(self) -> None:
        """Take leave: tell the cluster that the guard no longer watches, and then let it rest.

        From then on no guest may be started in a shared pool. Raises FailedPrecondition while a guest with a disk on a
        shared pool runs, and Unavailable when the cluster cannot be told or the guard does not answer; then nothing has
        changed.
        """
        self._disarming = True
        done = False
        try:
            try:
                trouble = await self._lease.beat()
            except TimeoutError as error:
                raise StoreUnavailable("etcd did not answer") from error
            if trouble:
                raise StoreUnavailable(trouble)
            self._status = await self._guard.disarm()
            done = True
        finally:
            if not done:
                self._disarming = False
                self._lease.poke()

    async def leave_pill(self, *, node: str, boot_id: str, pill_id: str) -> None:
        """Leave a poison pill for another node in every shared pool of this host. Raises StorageError: in none."""
        trouble: StorageError | None = None
        left = False
        for pool in self.shared_pools():
            try:
                await pool.write_pill(Pill(node=node, boot_id=boot_id, pill_id=pill_id))
                left = True
            except StorageError as error:
                trouble = error
        if not left:
            raise trouble or StorageError("this host shares no pool with others")

    async def withdraw_pill(self, *, pill_id: str) -> None:
        """Take this node's own pill away, in every shared pool. Raises StorageError."""
        for pool in self.shared_pools():
            await pool.withdraw_pill(self._node, pill_id=pill_id)
            await self._pill.look(pool)

    def _report(self) -> NodeReport | None:
        report = self._facts.report
        if report is None:
            return None
        return replace(
            report,
            guard_armed=self.guard_armed,
            guard_delay_s=self.guard_delay_s,
            lease_ttl_s=float(self._ttl_s),
            pill_id=self._pill.pill_id,
        )

    def _on_lease(self, sent_s: float, ttl_s: float) -> None:
        self._renew(sent_s, ttl_s)

    def _on_slot(self, pool_id: str, sent_s: float) -> None:
        # In a pool that nobody else can see, the slot shows nothing to anybody.
        if not self.is_shared(pool_id):
            return
        if self._lease.published:
            self._renew(sent_s, self._ttl_s)
        elif self._promised_ttl_s is not None:
            self._renew(sent_s, min(self._ttl_s, self._promised_ttl_s))

    def _renew(self, sent_s: float, ttl_s: float) -> None:
        if self._pill.pill_id:
            return
        self._legitimacy = renewed(self._legitimacy, sent_s=sent_s, ttl_s=ttl_s)
        self._renewal.set()

    async def _meet_guard(self) -> None:
        """Learn what an agent before this one promised."""
        try:
            status = await self._guard.status()
        except Unavailable as error:
            self._guard_lost(error)
            return
        self._promised_ttl_s = status.ttl_s if status.armed else self._ttl_s
        if status.armed:
            self._excess_s = max(0, math.ceil(status.deadline_s - self._clock.monotonic_s() - self._ttl_s))
            self._status = status

    async def _keep_guard(self) -> None:
        while True:
            await self._renewal.wait()
            self._renewal.clear()
            if self._legitimacy is None or self._disarming:
                continue
            try:
                if self._promised_ttl_s is None:
                    await self._meet_guard()
                await self._arm(self._legitimacy)
            except (Unavailable, InvalidArgument) as error:
                self._guard_lost(error)
                await self._clock.sleep(_GUARD_RETRY_S)
                self._renewal.set()

    async def _arm(self, legitimacy: Legitimacy) -> None:
        vouch = Vouch(
            since_s=legitimacy.since_s,
            deadline_s=legitimacy.until_s,
            ttl_s=self._ttl_s,
            roots=tuple(pool.root for pool in self.shared_pools()),
        )
        before = (self.guard_armed, self.guard_delay_s)
        status = await self._guard.arm(vouch)
        if self._disarming:
            return
        if self._status is None:
            _log.info("guard armed")
        self._status = status
        self._excess_s = max(0, math.ceil(status.deadline_s - vouch.deadline_s))
        if before != (self.guard_armed, self.guard_delay_s):
            self._lease.poke()

    def _guard_lost(self, error: LeewardError) -> None:
        if self._status is not None or self._legitimacy is None:
            _log.error("the guard does not watch", why=error.message)
        if self._status is not None:
            self._status = None
            self._lease.poke()
