"""What is done to nodes by operations: drain and bring back, fence, remove; and what their death would lead to."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TypeVar

from leeward import names
from leeward.clock import Clock
from leeward.errors import Conflict, FailedPrecondition, Violation
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node, NodeCondition, NodeDuty
from leeward_controller.domain.node_operation import (
    DRILL_REASON,
    BringBackArguments,
    DrainNodeArguments,
    DrainPolicy,
    DrillMove,
    DrillNodeArguments,
    FenceNodeArguments,
    OnFailure,
    RemoveNodeArguments,
)
from leeward_controller.domain.node_transitions import running_on, with_condition, with_duty
from leeward_controller.domain.operation import Arguments, OperationType
from leeward_controller.domain.transitions import TABLE
from leeward_controller.failover.plan import FailoverPlan, plan_failover
from leeward_controller.operations.fence_node import node_alive
from leeward_controller.operations.moving import policy_of
from leeward_controller.operations.remove_node import check_removable
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.ports import Fence
from leeward_controller.records import Commit, Records, Stored
from leeward_controller.scheduler.candidates import candidates
from leeward_controller.scheduler.placement import PlacementPolicy
from leeward_controller.scheduler.requests import request_for
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.instances import Target
from leeward_controller.services.shown import Presenter, ShownOperation
from leeward_controller.services.shown_nodes import NodeReader, ShownNode
from leeward_controller.view import ClusterView

T = TypeVar("T")

MAX_REASON_LENGTH = 1024
MAX_PARALLELISM = 64
MAX_RETRIES = 10
_ATTEMPTS = 5

Change = Callable[[Node], Node]
Prepare = Callable[[Node], Awaitable[tuple[Arguments, Change]]]
"""The arguments of an operation on the node as it is, and what the node becomes with it; raises what forbids it."""


class NodeOperations:
    """Begins operations on nodes."""

    def __init__(
        self,
        *,
        records: Records,
        nodes: NodeReader,
        view: ClusterView,
        submitter: Submitter,
        presenter: Presenter,
        fence: Fence,
        policy: PlacementPolicy,
        clock: Clock,
        gives_back: bool,
    ) -> None:
        """`gives_back` as in `NodeService`."""
        self._records = records
        self._nodes = nodes
        self._view = view
        self._submitter = submitter
        self._presenter = presenter
        self._fence = fence
        self._policy = policy
        self._clock = clock
        self._gives_back = gives_back

    async def drain(
        self,
        target: Target,
        requester: Requester,
        *,
        parallelism: int,
        retries: int | None,
        on_failure: OnFailure,
        enter_maintenance: bool,
        reason: str,
    ) -> ShownOperation:
        """Cordon a node and move every instance off it. 0 at a time, and no `retries`, mean the defaults.

        Raises InvalidArgument, NotFound, WrongState, OperationRunning, Conflict (etag).
        """
        checks, usual = Checks(), DrainNodeArguments()
        checks.between(parallelism, 0, MAX_PARALLELISM, "parallelism")
        checks.between(retries or 0, 0, MAX_RETRIES, "retries")
        too_long = f"has {len(reason)} characters, at most {MAX_REASON_LENGTH} are allowed"
        checks.that(len(reason) <= MAX_REASON_LENGTH, "reason", too_long)
        wanted = DrainNodeArguments(
            parallelism=parallelism or usual.parallelism,
            retries=usual.retries if retries is None else retries,
            on_failure=on_failure,
            enter_maintenance=enter_maintenance,
            reason=reason,
        )

        async def prepare(node: Node) -> tuple[Arguments, Change]:
            arguments = replace(wanted, duty_before=node.duty, cordon_reason_before=node.cordon_reason)
            return arguments, lambda node: with_duty(node, NodeDuty.DRAINING, reason=reason)

        return await self._begin(target, OperationType.DRAIN_NODE, prepare, requester, checks)

    async def drill(self, target: Target, requester: Requester, *, parallelism: int) -> ShownOperation:
        """Move each running guest of a node live to where failover would restart it, and back; 0 means the default.

        Raises InvalidArgument, NotFound, WrongState, OperationRunning, Conflict (etag), FailedPrecondition (it is not
        in service).
        """
        checks = Checks()
        checks.between(parallelism, 0, MAX_PARALLELISM, "parallelism")

        async def prepare(node: Node) -> tuple[Arguments, Change]:
            _check_in_service(node)
            arguments = self._drill_of(node, parallelism=parallelism or DrillNodeArguments("").parallelism)
            return arguments, lambda node: with_duty(node, NodeDuty.DRAINING, reason=DRILL_REASON)

        return await self._begin(target, OperationType.DRILL_NODE, prepare, requester, checks)

    def _drill_of(self, node: Node, *, parallelism: int) -> DrillNodeArguments:
        """Where failover would restart what runs on the node and may be moved live."""
        present = [stored.value for stored in self._view.instances_on(node.node)]
        taking_part = {each.name: each for each in present if _takes_part(each)}
        moves = tuple(
            DrillMove(each.instance, taking_part[each.instance].uid, each.node, each.reason)
            for each in self._plan(node.node, present).placements
            if each.instance in taking_part
        )
        return DrillNodeArguments(node.report.boot_id, moves, len(present) - len(moves), parallelism)

    async def fence(self, target: Target, requester: Requester, *, force: bool) -> ShownOperation:
        """Seek a proof that the node's last known boot is over.

        Raises InvalidArgument, NotFound, OperationRunning, Conflict (etag), FailedPrecondition (it is alive and `force`
        is not asked for, or it is alive and there is no device to cut its power).
        """

        async def prepare(node: Node) -> tuple[Arguments, Change]:
            shown = await self._nodes.gathered(Stored("", node, 0, 0))
            if shown.lease is not None and shown.proof is None:
                self._check_fenceable(node, force=force)
            return FenceNodeArguments(node.report.boot_id, force), lambda node: node

        return await self._begin(target, OperationType.FENCE_NODE, prepare, requester, Checks())

    def _check_fenceable(self, node: Node, *, force: bool) -> None:
        if not force:
            raise node_alive(node)
        if not self._fence.covers(node.node):
            why = "no fence device is configured for it"
            raise FailedPrecondition(
                f"{node.name} is alive, and its power cannot be cut: {why}",
                reason="NO_FENCE_DEVICE",
                violations=[Violation("FENCE_DEVICE", node.name, why)],
                resource=node.name,
            )

    async def remove(self, target: Target, requester: Requester) -> ShownOperation:
        """Take a node out of the cluster.

        Raises InvalidArgument, NotFound, WrongState, OperationRunning, Conflict (etag), FailedPrecondition (it is
        alive, or not empty).
        """

        async def prepare(node: Node) -> tuple[Arguments, Change]:
            await check_removable(self._records, node)
            return RemoveNodeArguments(), lambda node: node

        return await self._begin(target, OperationType.REMOVE_NODE, prepare, requester, Checks())

    async def bring_back(self, target: Target, requester: Requester) -> ShownNode:
        """Put a node back into service, and begin to move back what was drained off it, where there is something.

        Raises InvalidArgument, NotFound, WrongState, OperationRunning, Conflict (etag).
        """
        change = partial(back_in_service, now=self._clock.now(), gives_back=self._gives_back)

        async def begin(stored: Stored[Node]) -> None:
            away = stored.value.moved_away
            begun = partial(_with_nothing_away, change)
            if target.validate_only:
                change(stored.value)
            elif away:
                arguments = BringBackArguments(away)
                await self._submitter.submit_on_node(
                    stored, OperationType.BRING_BACK, arguments, requester, change=begun
                )
            elif (new := change(stored.value)) != stored.value:
                await self._records.commit(Commit().replace(stored, new))

        node_id = self._checked(target, requester, Checks())
        if await self._submitter.repeated(requester) is None:
            await self._on_present(node_id, target, begin)
        return await self._nodes.gathered(await self._nodes.read(node_id))

    async def plan_failover(self, name: str) -> tuple[FailoverPlan, datetime]:
        """What would happen if the node died now, as this replica sees the cluster, and when that was.

        Raises InvalidArgument, NotFound.
        """
        node_id = (await self._nodes.read(names.node(name))).value.node
        plan = self._plan(node_id, [stored.value for stored in self._view.instances_on(node_id)])
        return plan, self._clock.now()

    def _plan(self, node_id: str, instances: list[Instance]) -> FailoverPlan:
        return plan_failover(
            node_id,
            instances,
            candidates(self._view),
            request_of=lambda instance: request_for(
                self._view, instance, excluded=((node_id, "it is the node thought away"),), lost_node=True
            ),
            policy=self._policy,
        )

    def _checked(self, target: Target, requester: Requester, checks: Checks) -> str:
        node_id = checks.parsed(lambda: names.node(target.name), "")
        checks.request_id(requester.request_id)
        checks.done()
        return node_id

    async def _begin(
        self, target: Target, wanted: OperationType, prepare: Prepare, requester: Requester, checks: Checks
    ) -> ShownOperation:
        node_id = self._checked(target, requester, checks)
        if (earlier := await self._submitter.repeated(requester)) is not None:
            return await self._presenter.show(earlier)

        async def begin(stored: Stored[Node]) -> ShownOperation:
            arguments, change = await prepare(stored.value)
            if target.validate_only:
                await self._submitter.check_node(stored.value, wanted)
                return self._presenter.only_checked(stored.value, wanted, arguments, requester.principal)
            operation = await self._submitter.submit_on_node(stored, wanted, arguments, requester, change=change)
            return await self._presenter.show(operation)

        return await self._on_present(node_id, target, begin)

    async def _on_present(self, node_id: str, target: Target, act: Callable[[Stored[Node]], Awaitable[T]]) -> T:
        """Act on the node as it is; again when it changed in between, unless a version was asked for."""
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self._nodes.read(node_id)
            check_etag(stored, target.etag, name=target.name)
            try:
                return await act(stored)
            except Conflict as error:
                # An operation that runs is a conflict of its own kind: asking again changes nothing.
                if attempts <= 0 or error.specific_reason != Conflict.reason:
                    raise


def _takes_part(instance: Instance) -> bool:
    """Whether a drill moves it: it runs, failover would restart it, and its owner lets it be moved live."""
    runs = instance.state in TABLE[OperationType.LIVE_MIGRATE].allowed_from
    return runs and instance.restart_on_failure and policy_of(instance) is DrainPolicy.LIVE


def _check_in_service(node: Node) -> None:
    """Raises FailedPrecondition for a node that nothing could be brought back to."""
    if node.duty is not NodeDuty.IN_SERVICE:
        why = f"it is {node.duty} ({node.cordon_reason or 'no reason was given'})"
        raise FailedPrecondition(
            f"the failover of {node.name} cannot be rehearsed: {why}; uncordon it first",
            reason="NOT_IN_SERVICE",
            violations=[Violation("DUTY", node.name, why)],
            resource=node.name,
        )


def _with_nothing_away(change: Change, node: Node) -> Node:
    return replace(change(node), moved_away=())


def back_in_service(node: Node, *, now: datetime, gives_back: bool) -> Node:
    """A node that takes instances again. Raises OperationRunning while it is drained.

    What was drained off it is forgotten, and what failover took from it as well unless policy `gives_back` that.
    """
    if node.duty is NodeDuty.DRAINING:
        is_drill = node.cordon_reason == DRILL_REASON
        raise running_on(node, OperationType.DRILL_NODE if is_drill else OperationType.DRAIN_NODE)
    returning = tuple(each for each in node.moved_away if gives_back and each.restarted_on)
    node = replace(with_duty(node, NodeDuty.IN_SERVICE, reason=""), moved_away=returning)
    if node.condition is not NodeCondition.QUARANTINED:
        return node
    return with_condition(node, NodeCondition.READY, "released from quarantine by an operator", now=now)
