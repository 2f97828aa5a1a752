"""The leader's watch over the nodes: look, decide, do; again at each change, and twice a second at least."""

import asyncio

import structlog

from leeward import keys
from leeward.clock import await_event
from leeward.errors import LeewardError
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node, NodeCondition, NodeDuty, Reservation
from leeward_controller.domain.operation import OperationType
from leeward_controller.failover.countdown import Countdown
from leeward_controller.failover.decide import decide
from leeward_controller.failover.execute import Executor
from leeward_controller.failover.model import (
    BrakePolicy,
    ClusterSnapshot,
    Isolation,
    IsolationPolicy,
    NodeSnapshot,
    Silence,
    Timing,
    differs,
)
from leeward_controller.failover.observe import SlotObservers
from leeward_controller.operations.context import Surroundings

log = structlog.get_logger()

_TICK_S = 0.5
_EASED_TICK_S = 0.2
_LEAST_PAUSE_S = 0.02


class FailoverLoop:
    """Watches the nodes during one term of leadership.

    A new leader gives every missing node a full TTL before it counts it as missing, because it cannot know for how
    long it has been.
    """

    def __init__(
        self,
        *,
        surroundings: Surroundings,
        observers: SlotObservers,
        executor: Executor,
        timing: Timing,
        brake: BrakePolicy,
        isolation: IsolationPolicy,
    ) -> None:
        self._surroundings = surroundings
        self._view = surroundings.view
        self._clock = surroundings.clock
        self._observers = observers
        self._executor = executor
        self._timing = timing
        self._brake = brake
        self._isolation = isolation
        self._countdown = Countdown(self._clock)
        self._has_looked = False
        self._missing_since_s: dict[str, float] = {}
        self._other_boots: dict[str, tuple[str, float]] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        stop_listening = self._view.listen(self._notice)
        try:
            while True:
                try:
                    await self._once()
                except LeewardError as error:
                    # The next look starts from what is true then; nothing was decided that is not in the store.
                    log.warning("failover.round_failed", error=error.message, reason=error.specific_reason)
                await self._pause()
        finally:
            stop_listening()
            await self._executor.close()

    def _notice(self, key: str) -> None:
        if key.startswith((keys.LEASES, keys.NODES, keys.FENCES)):
            self._wake.set()

    async def _pause(self) -> None:
        # When many nodes change at once, one look takes them all in.
        await self._clock.sleep(_LEAST_PAUSE_S)
        tick_s = _EASED_TICK_S if self._missing_since_s else _TICK_S
        await await_event(self._wake, clock=self._clock, within_s=tick_s)
        self._wake.clear()

    async def _once(self) -> None:
        if not self._view.synced:
            return
        self._track_missing()
        asked = frozenset(node for node in self._missing_since_s if not self._is_over(node))
        silences = await self._observers.silences(asked) if asked else {}
        self._track_other_boots(silences)
        snapshot = self._snapshot(silences)
        for decision in decide(snapshot, timing=self._timing, brake=self._brake):
            await self._executor.execute(decision)

    def _track_missing(self) -> None:
        now_s = self._clock.monotonic_s()
        known = {stored.value.node for stored in self._view.nodes.values()}
        for removed in self._missing_since_s.keys() - known:
            self._missing_since_s.pop(removed)
        for stored in self._view.nodes.values():
            node = stored.value.node
            if node in self._view.leases:
                self._missing_since_s.pop(node, None)
            elif node not in self._missing_since_s:
                grace_s = 0.0 if self._has_looked else stored.value.report.lease_ttl_s
                self._missing_since_s[node] = now_s + grace_s
        self._has_looked = True

    def _track_other_boots(self, silences: dict[str, Silence]) -> None:
        now_s, before = self._clock.monotonic_s(), self._other_boots
        self._other_boots = {}
        for node_id, silence in silences.items():
            stored = self._view.nodes.get(keys.node(node_id))
            if stored is None or silence.boot_id == stored.value.report.boot_id:
                continue
            if silence.seconds < self._timing.slot_fresh_s:
                boot_id, since_s = before.get(node_id, ("", now_s))
                self._other_boots[node_id] = (silence.boot_id, since_s if boot_id == silence.boot_id else now_s)

    def _other_boot_s(self, node_id: str) -> float:
        _, since_s = self._other_boots.get(node_id, ("", self._clock.monotonic_s()))
        return self._clock.monotonic_s() - since_s

    def _is_over(self, node_id: str) -> bool:
        stored = self._view.nodes.get(keys.node(node_id))
        return stored is not None and stored.value.condition in (NodeCondition.FENCED, NodeCondition.EVACUATED)

    def _snapshot(self, silences: dict[str, Silence]) -> ClusterSnapshot:
        nodes = tuple(
            self._node_snapshot(stored.value.node, silences.get(stored.value.node))
            for _, stored in sorted(self._view.nodes.items())
        )
        registered = {node.node for node in nodes}
        unregistered = tuple(sorted(set(self._view.leases) - registered))
        brake, disarm = self._view.brake, self._view.disarm
        return ClusterSnapshot(
            nodes,
            unregistered,
            self._unwell(),
            brake=brake.value if brake else None,
            disarm=disarm.value if disarm else None,
            disarm_left_s=self._countdown.left_s(disarm),
        )

    def _unwell(self) -> str:
        """Why the controllers' own sight is not to be trusted now; empty when it is."""
        longest_ttl_s = max((s.value.report.lease_ttl_s for s in self._view.nodes.values()), default=0.0)
        since_s = self._clock.monotonic_s() - self._view.last_trouble_s
        if since_s < longest_ttl_s:
            return f"the store could not be reached {since_s:.1f} s ago, so lost leases may be its own doing"
        return ""

    def _node_snapshot(self, node_id: str, silence: Silence | None) -> NodeSnapshot:
        node = self._view.nodes[keys.node(node_id)].value
        lease = self._view.leases.get(node_id)
        proof = self._view.fences.get(keys.fence(node_id, node.report.boot_id))
        now_s = self._clock.monotonic_s()
        missing_s = None
        if lease is None:
            missing_s = now_s - self._missing_since_s.get(node_id, now_s)
        return NodeSnapshot(
            node=node_id,
            condition=node.condition,
            in_maintenance=node.duty is NodeDuty.MAINTENANCE,
            known_boot_id=node.report.boot_id,
            lease_boot_id=lease.report.boot_id if lease else node.report.boot_id,
            lease_missing_s=missing_s,
            report_changed=lease is not None and differs(node.report, lease.report),
            guard_armed=node.report.guard_armed,
            lease_ttl_s=node.report.lease_ttl_s,
            guard_delay_s=node.report.guard_delay_s,
            silence=silence,
            proof=proof.value.kind if proof else None,
            instances=self._view.count_on(node_id),
            waiting=self._waiting(node_id) if proof else (),
            can_power_off=self._executor.can_power_off(node_id),
            powering_off=self._executor.is_powering_off(node_id),
            power_trouble=self._executor.power_trouble(node_id),
            reason=node.reason,
            other_boot_s=self._other_boot_s(node_id),
            idle=self._idle(node_id) if proof else 0,
            held=self._held(node_id) if proof else 0,
            held_pill=lease.report.pill_id if lease else "",
            left_pill=self._executor.left_pill(node_id, node.report.boot_id),
            pill_overdue=self._executor.is_pill_overdue(node_id),
            isolated_for_long=self._is_isolated_for_long(missing_s),
            fence_asked=self._is_fence_asked(node),
        )

    def _is_isolated_for_long(self, missing_s: float | None) -> bool:
        policy = self._isolation
        return policy.isolation is Isolation.MOVE and missing_s is not None and missing_s >= policy.after_s

    def _is_fence_asked(self, node: Node) -> bool:
        stored = self._view.operations.get(keys.operation(node.current_operation.removeprefix("operations/")))
        return stored is not None and stored.value.type is OperationType.FENCE_NODE

    def _waiting(self, node_id: str) -> tuple[str, ...]:
        instances = (stored.value for stored in self._view.instances_on(node_id))
        return tuple(instance.name for instance in instances if self._executor.needs_evacuation(instance))

    def _idle(self, node_id: str) -> int:
        return sum(1 for stored in self._view.instances_on(node_id) if not self._is_evacuating(stored.value))

    def _held(self, node_id: str) -> int:
        stored = self._view.allocations.get(keys.allocation(node_id))
        places = stored.value.reservations if stored is not None else ()
        return sum(1 for place in places if not self._may_return(place, node_id))

    def _may_return(self, place: Reservation, node_id: str) -> bool:
        """Whether it is the place of an instance that is elsewhere until its resize is confirmed or reverted."""
        stored = self._view.instances.get(keys.instance(place.instance))
        return stored is not None and stored.value.node != node_id and node_id in stored.value.holding_nodes

    def _is_evacuating(self, instance: Instance) -> bool:
        key = keys.operation(instance.current_operation.removeprefix("operations/"))
        stored = self._view.operations.get(key)
        return stored is not None and stored.value.type is OperationType.EVACUATE
