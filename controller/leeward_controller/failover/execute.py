"""Carries out failover's decisions.

Every write is bound to the leader's key, so a leader of the past changes nothing.
"""

import asyncio
from dataclasses import replace

import structlog

from leeward import keys
from leeward.clock import Ids
from leeward.errors import Conflict, LeewardError
from leeward_controller.domain.cluster import Brake, Disarm
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation, NodeCondition, ProofKind, Reservation
from leeward_controller.domain.node_transitions import with_condition
from leeward_controller.domain.operation import EvacuateArguments, OperationType
from leeward_controller.failover.model import (
    AdoptReport,
    Arm,
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
from leeward_controller.failover.power import PowerCuts
from leeward_controller.failover.restarts import Restarts, Start
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.ports import Fence
from leeward_controller.records import Commit, Stored

log = structlog.get_logger()

_REQUESTER = Requester(principal="leeward:failover", admin=True)
_MOST_TRIMMED = 50
"""Reservations dropped in one transaction that bring their groups into it."""


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
        restarts: Restarts,
    ) -> None:
        self._view = surroundings.view
        self._records = surroundings.records
        self._clock = surroundings.clock
        self._submitter = submitter
        self._pills = pills
        self._ids = ids
        self._leader_epoch = leader_epoch
        self._controller_id = controller_id
        self._timing = timing
        self._power = PowerCuts(
            fence=fence, view=surroundings.view, clock=surroundings.clock, record_off=self._record_off
        )
        self._restarts = restarts

    def can_power_off(self, node_id: str) -> bool:
        """Whether a fence device is configured for the node."""
        return self._power.covers(node_id)

    def is_powering_off(self, node_id: str) -> bool:
        """Whether its device is being asked now, or was asked so lately that it is left alone."""
        return self._power.is_busy(node_id)

    def power_trouble(self, node_id: str) -> str:
        """Why its power could not be cut the last time, in words; empty when nothing is known against it."""
        return self._power.trouble(node_id)

    async def close(self) -> None:
        """Stop what goes on in the background, at the end of the term."""
        await self._power.close()

    def left_pill(self, node_id: str, boot_id: str) -> str:
        """The poison pill that this leader left for this boot of the node."""
        return self._pills.left(node_id, boot_id)

    def is_pill_overdue(self, node_id: str) -> bool:
        """Whether the node should have taken a pill for long."""
        return self._pills.is_overdue(node_id)

    def needs_evacuation(self, instance: Instance) -> bool:
        """Whether an instance of a fenced node is still to be taken care of, and may be tried now."""
        return self._restarts.needs(instance)

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
                self._power.begin(node, boot_id)
            case LeavePill(node, boot_id):
                await self._pills.leave(node, boot_id)
            case WithdrawPill(node, pill_id):
                await self._withdraw_pill(node, pill_id)
            case Evacuate():
                await self._evacuate(decision)
            case TrimAllocation(node):
                await self._trim(node)
            case PullBrake():
                await self._pull_brake(decision)
            case ReleaseBrake():
                log.info("failover.brake_released")
                await self._commit(Commit().discard(keys.BRAKE))
            case Arm(disarm):
                await self._arm(disarm)

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
        commit = Commit().create(keys.fence(decision.node, decision.boot_id), proof)
        if decision.kind is ProofKind.SILENCE and self._view.disarm is None:
            # A disarm that has been answered holds, even where this leader has not heard of it yet.
            commit.absent(keys.DISARM)
        await self._commit(commit)

    async def _pull_brake(self, decision: PullBrake) -> None:
        """Record it, unless an operator has just released the one that was decided on."""
        stored = self._view.brake or Stored(keys.BRAKE, Brake("", (), self._clock.now()), 0, 0)
        since = stored.value.time if stored.value.holds else self._clock.now()
        release = stored.value.release if decision.keeps_release else None
        brake = Brake(decision.reason, decision.nodes, since, decision.unwell, release)
        log.warning("failover.brake", reason=brake.reason, nodes=brake.nodes, holds=brake.holds)
        await self._commit(Commit().replace(stored, brake))

    async def _arm(self, disarm: Disarm) -> None:
        """End this disarm, unless an operator has just put another one in its place."""
        stored = self._view.disarm
        if stored is not None and stored.value == disarm:
            log.info("failover.armed", why="the disarm's time is up", reason=disarm.reason)
            await self._commit(Commit().remove(stored))

    async def _withdraw_pill(self, node_id: str, pill_id: str) -> None:
        try:
            await self._pills.withdraw(node_id, pill_id)
        except LeewardError as error:
            # Its heartbeat goes on telling of the pill, and the next look tries again.
            log.info("failover.pill_not_withdrawn", node=node_id, why=error.message)

    async def _record_off(self, node_id: str, boot_id: str, evidence: str) -> None:
        """Persist that the power is off, unless a heartbeat says that the device lied, or cut another host's power."""
        proof = FenceProof(node_id, boot_id, ProofKind.POWER_OFF, evidence, self._clock.now(), self._controller_id)
        await self._commit(Commit().create(keys.fence(node_id, boot_id), proof).alive(keys.lease(node_id), 0))
        log.warning("failover.proof", node=node_id, kind=proof.kind, evidence=evidence)

    async def _evacuate(self, decision: Evacuate) -> None:
        starts = self._restarts.choose(decision.node, decision.instances)
        await asyncio.gather(*(self._evacuate_one(decision, start) for start in starts))

    async def _evacuate_one(self, decision: Evacuate, start: Start) -> None:
        instance = start.stored.value
        arguments = EvacuateArguments(
            fenced_node=decision.node,
            fenced_boot_id=decision.boot_id,
            automatic=True,
            preferred_node=start.node,
        )
        try:
            operation = await self._submitter.submit(
                start.stored, OperationType.EVACUATE, arguments, _REQUESTER, leader_epoch=self._leader_epoch
            )
            self._restarts.begun(instance.uid, operation, start.node)
        except Conflict as error:
            log.info("failover.evacuation_overtaken", instance=instance.name, why=error.message)
            self._restarts.overtaken(instance.uid)
        except LeewardError as error:
            log.warning("failover.evacuation_not_begun", instance=instance.name, error=error.message)

    async def _trim(self, node_id: str) -> None:
        """Free what is held for instances that are not there, unless an operation has reserved it.

        All is judged as of one moment of the view, and compared; what does not go into one transaction is left to the
        next look.
        """
        stored = self._view.allocations.get(keys.allocation(node_id))
        if stored is None:
            return
        instances = (instance.value for instance in self._view.instances.values())
        uids = {instance.uid for instance in instances if node_id in instance.holding_nodes}
        uids |= {
            operation.value.instance_uid
            for operation in self._view.unfinished.values()
            if operation.value.work.target_node == node_id
        }
        dropped = self._droppable([each for each in stored.value.reservations if each.instance_uid not in uids])
        if not dropped:
            return
        gone = {each.instance_uid for each in dropped}
        kept = tuple(each for each in stored.value.reservations if each.instance_uid not in gone)
        commit = Commit().replace(stored, NodeAllocation(node_id, kept))
        for group in self._groups_without(dropped, node_id):
            commit.replace(group, group.value)
        await self._commit(commit)

    def _droppable(self, left: list[Reservation]) -> list[Reservation]:
        """As many as go into one transaction: those of members of groups each bring their group."""
        in_groups = [each for each in left if self._group_of(each) is not None]
        alone = [each for each in left if self._group_of(each) is None]
        return alone + in_groups[:_MOST_TRIMMED]

    def _group_of(self, held: Reservation) -> Stored[Group] | None:
        instance = self._view.instances.get(keys.instance(held.instance))
        return self._view.groups.get(keys.group(instance.value.group)) if instance is not None else None

    def _groups_without(self, dropped: list[Reservation], node_id: str) -> list[Stored[Group]]:
        """The groups of those instances, as they are without the places on this node."""
        groups: dict[str, Stored[Group]] = {}
        for each in dropped:
            group = self._group_of(each)
            if group is not None:
                held = groups.get(group.key, group)
                groups[group.key] = replace(held, value=held.value.without_place(each.instance_uid, node_id))
        return list(groups.values())
