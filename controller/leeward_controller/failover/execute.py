"""Carries out failover's decisions.

Every write is bound to the leader's key, so a leader of the past changes nothing.
"""

import asyncio
from dataclasses import replace

import structlog

from leeward import keys
from leeward.clock import Ids
from leeward.errors import Conflict, LeewardError
from leeward_controller.domain.cluster import Brake
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation, NodeCondition, ProofKind, Reservation
from leeward_controller.domain.node_transitions import with_condition
from leeward_controller.domain.operation import EvacuateArguments, OperationType
from leeward_controller.failover.model import (
    AdoptReport,
    ClearProof,
    Decision,
    Evacuate,
    LeavePill,
    PowerOff,
    PullBrake,
    RecordProof,
    Register,
    ReleaseBrake,
    SetCondition,
    Timing,
    TrimAllocation,
    WithdrawPill,
)
from leeward_controller.failover.pills import Pills
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.ports import Fence
from leeward_controller.records import Commit, Stored
from leeward_controller.scheduler.candidates import candidates
from leeward_controller.scheduler.placement import plan_placement
from leeward_controller.scheduler.requests import request_for

log = structlog.get_logger()

_REQUESTER = Requester(principal="leeward:failover", admin=True)
_SELF_HEALING = frozenset({OperationType.CREATE, OperationType.EVACUATE, OperationType.DELETE})
_MOST_TRIMMED = 50
"""Reservations dropped in one transaction, each with its group: what is left is dropped with the next look."""


class Executor:
    """Does what was decided, during one term of leadership."""

    def __init__(
        self,
        *,
        surroundings: Surroundings,
        submitter: Submitter,
        fence: Fence,
        pills: Pills,
        ids: Ids,
        leader_epoch: int,
        controller_id: str,
        timing: Timing,
    ) -> None:
        self._surroundings = surroundings
        self._view = surroundings.view
        self._records = surroundings.records
        self._clock = surroundings.clock
        self._submitter = submitter
        self._fence = fence
        self._pills = pills
        self._ids = ids
        self._leader_epoch = leader_epoch
        self._controller_id = controller_id
        self._timing = timing
        self._power_offs: dict[str, asyncio.Task[None]] = {}
        self._not_before_s: dict[str, float] = {}
        self._tried: set[str] = set()

    def can_power_off(self, node_id: str) -> bool:
        """Whether a fence device is configured for the node."""
        return self._fence.covers(node_id)

    def is_powering_off(self, node_id: str) -> bool:
        """Whether its device is being asked now."""
        return node_id in self._power_offs

    def left_pill(self, node_id: str, boot_id: str) -> str:
        """The poison pill that this leader left for this boot of the node."""
        return self._pills.left(node_id, boot_id)

    def needs_evacuation(self, instance: Instance) -> bool:
        """Whether an instance of a fenced node is still to be taken care of, and its turn has come."""
        if not instance.restart_on_failure or instance.state in (InstanceState.BUILDING, InstanceState.DELETED):
            return False
        if instance.current_operation:
            operation = self._view.operations.get(
                keys.operation(instance.current_operation.removeprefix("operations/"))
            )
            if operation is None or operation.value.type in _SELF_HEALING:
                return False
        return self._clock.monotonic_s() >= self._not_before_s.get(instance.uid, 0.0)

    async def execute(self, decision: Decision) -> None:
        """Carry out one decision. Raises StoreUnavailable, StoreIndefinite; a Conflict is left to the next look."""
        log.info("failover.decision", decision=type(decision).__name__, node=getattr(decision, "node", ""))
        try:
            await self._execute(decision)
        except Conflict as error:
            log.info("failover.overtaken", decision=type(decision).__name__, why=error.message)

    async def _execute(self, decision: Decision) -> None:
        match decision:
            case Register(node):
                await self._register(node)
            case SetCondition():
                await self._set_condition(decision)
            case AdoptReport(node):
                await self._adopt_report(node)
            case RecordProof():
                await self._record_proof(decision)
            case ClearProof(node, boot_id):
                await self._commit(Commit().discard(keys.fence(node, boot_id)))
            case PowerOff(node, boot_id):
                self._power_off(node, boot_id)
            case LeavePill(node, boot_id):
                await self._pills.leave(node, boot_id)
            case WithdrawPill(node, pill_id):
                await self._withdraw_pill(node, pill_id)
            case Evacuate():
                await self._evacuate(decision)
            case TrimAllocation(node):
                await self._trim(node)
            case PullBrake(reason, nodes):
                log.warning("failover.brake", reason=reason, nodes=nodes)
                await self._commit(Commit().put(keys.BRAKE, Brake(reason, nodes, self._clock.now())))
            case ReleaseBrake():
                log.info("failover.brake_released")
                await self._commit(Commit().discard(keys.BRAKE))

    async def _commit(self, commit: Commit) -> int:
        return await self._records.commit(commit.alive(keys.LEADER, self._leader_epoch))

    async def _register(self, node_id: str) -> None:
        lease = self._view.leases.get(node_id)
        if lease is None:
            return
        now = self._clock.now()
        node = Node(
            node=node_id,
            uid=self._ids.new(),
            condition=NodeCondition.READY,
            reason="registered",
            report=lease.report,
            create_time=now,
            condition_time=now,
            labels=dict(lease.report.labels),
        )
        await self._commit(Commit().create(keys.node(node_id), node))

    async def _set_condition(self, decision: SetCondition) -> None:
        stored = self._view.nodes.get(keys.node(decision.node))
        if stored is None:
            return
        report = stored.value.report
        lease = self._view.leases.get(decision.node)
        if decision.adopt_report and lease is not None:
            report = lease.report
        new = with_condition(stored.value, decision.condition, decision.reason, now=self._clock.now())
        await self._commit(Commit().replace(stored, replace(new, report=report)))

    async def _adopt_report(self, node_id: str) -> None:
        stored, lease = self._view.nodes.get(keys.node(node_id)), self._view.leases.get(node_id)
        if stored is None or lease is None:
            return
        await self._commit(Commit().replace(stored, replace(stored.value, report=lease.report)))

    async def _record_proof(self, decision: RecordProof) -> None:
        proof = FenceProof(
            decision.node, decision.boot_id, decision.kind, decision.evidence, self._clock.now(), self._controller_id
        )
        log.warning("failover.proof", node=decision.node, kind=decision.kind, evidence=decision.evidence)
        await self._commit(Commit().create(keys.fence(decision.node, decision.boot_id), proof))

    async def _withdraw_pill(self, node_id: str, pill_id: str) -> None:
        try:
            await self._pills.withdraw(node_id, pill_id)
        except LeewardError as error:
            # Its heartbeat goes on telling of the pill, and the next look tries again.
            log.info("failover.pill_not_withdrawn", node=node_id, why=error.message)

    def _power_off(self, node_id: str, boot_id: str) -> None:
        task = asyncio.ensure_future(self._power_off_and_prove(node_id, boot_id))
        self._power_offs[node_id] = task
        task.add_done_callback(lambda _: self._power_offs.pop(node_id, None))

    async def _power_off_and_prove(self, node_id: str, boot_id: str) -> None:
        outcome = await self._fence.power_off(node_id)
        log.warning("failover.power_off", node=node_id, off=outcome.confirmed_off, evidence=outcome.evidence)
        if not outcome.confirmed_off:
            await self._clock.sleep(self._timing.retry_evacuation_s)
            return
        try:
            await self._record_proof(RecordProof(node_id, boot_id, ProofKind.POWER_OFF, outcome.evidence))
        except LeewardError as error:
            log.warning("failover.proof_not_recorded", node=node_id, error=error.message)

    async def _evacuate(self, decision: Evacuate) -> None:
        await asyncio.gather(*(self._evacuate_one(decision, name) for name in decision.instances))

    async def _evacuate_one(self, decision: Evacuate, name: str) -> None:
        stored = self._view.instances.get(keys.instance(name))
        if stored is None:
            return
        uid = stored.value.uid
        if uid in self._tried and not self._has_place(stored.value, leaving=decision.node):
            # An operation that fails for want of a place says so once; the next one waits until there is one.
            self._put_off(uid, self._timing.retry_conflict_s)
            return
        self._put_off(uid, self._timing.retry_evacuation_s)
        arguments = EvacuateArguments(fenced_node=decision.node, fenced_boot_id=decision.boot_id, automatic=True)
        try:
            await self._submitter.submit(
                stored, OperationType.EVACUATE, arguments, _REQUESTER, leader_epoch=self._leader_epoch
            )
            self._tried.add(uid)
        except Conflict as error:
            log.info("failover.evacuation_overtaken", instance=name, why=error.message)
            self._put_off(uid, self._timing.retry_conflict_s)
        except LeewardError as error:
            log.warning("failover.evacuation_not_begun", instance=name, error=error.message)

    def _put_off(self, uid: str, seconds: float) -> None:
        self._not_before_s[uid] = self._clock.monotonic_s() + seconds

    def _has_place(self, instance: Instance, *, leaving: str) -> bool:
        excluded = ((leaving, "it is the node being left"),)
        request = request_for(self._view, instance, excluded=excluded, lost_node=True)
        return bool(plan_placement(candidates(self._view), request, policy=self._surroundings.policy).ranked)

    async def _trim(self, node_id: str) -> None:
        """Free what is held for instances that are not there, unless an operation has just reserved it."""
        stored = self._view.allocations.get(keys.allocation(node_id))
        if stored is None or not stored.value.reservations:
            return
        uids = {instance.value.uid for instance in self._view.instances_on(node_id)}
        uids |= {
            operation.value.instance_uid
            for operation in self._view.operations.values()
            if operation.value.work.target_node == node_id and not operation.value.phase.ended
        }
        dropped = [each for each in stored.value.reservations if each.instance_uid not in uids][:_MOST_TRIMMED]
        if not dropped:
            return
        kept = tuple(each for each in stored.value.reservations if each not in dropped)
        commit = Commit().replace(stored, NodeAllocation(node_id, kept))
        for group in self._groups_without(dropped, node_id):
            commit.replace(group, group.value)
        await self._commit(commit)

    def _groups_without(self, dropped: list[Reservation], node_id: str) -> list[Stored[Group]]:
        """The groups of those instances, as they are without the places on this node."""
        groups: dict[str, Stored[Group]] = {}
        for each in dropped:
            instance = self._view.instances.get(keys.instance(each.instance))
            group = self._view.groups.get(keys.group(instance.value.group)) if instance is not None else None
            if group is not None:
                held = groups.get(group.key, group)
                groups[group.key] = replace(held, value=held.value.without_place(each.instance_uid, node_id))
        return list(groups.values())
