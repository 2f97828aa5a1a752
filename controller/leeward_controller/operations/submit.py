"""The way in: an operation is made in one transaction with what it says of its instance or node."""

import base64
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from leeward import keys
from leeward.agent.types import RebootMode
from leeward.clock import Clock, Ids
from leeward.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    LeewardError,
    NotFound,
    ResourceExhausted,
    StoreIndefinite,
    StoreUnavailable,
)
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node
from leeward_controller.domain.node_transitions import check_node_allowed
from leeward_controller.domain.operation import (
    Arguments,
    CreateArguments,
    EvacuateArguments,
    Operation,
    OperationType,
    RebootArguments,
    ResizeArguments,
)
from leeward_controller.domain.transitions import SOFT_REBOOT_FROM, check_allowed, check_lock
from leeward_controller.operations.admission import Gatekeeper
from leeward_controller.operations.definitions import DEFINITIONS
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.operations.subject import Subject, operation_on
from leeward_controller.records import INSTANCES, OPERATIONS, Commit, Records, Stored

log = structlog.get_logger()

_CREATE_ATTEMPTS = 20
_CREATE_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks. The same principal with the same `request_id` gets the same operation again, for as long as it is kept.

    `fingerprint` digests the request, so that an id used again for something else is an error and not a surprise.
    `parent` is the operation that asks in their name.
    """

    principal: str
    request_id: str = ""
    fingerprint: str = ""
    admin: bool = False
    parent: str = ""


class Submitter:
    """Starts operations; this replica drives those it starts."""

    def __init__(
        self, *, records: Records, runner: OperationRunner, gatekeeper: Gatekeeper, clock: Clock, ids: Ids
    ) -> None:
        self._records = records
        self._runner = runner
        self._gatekeeper = gatekeeper
        self._clock = clock
        self._ids = ids

    async def create(
        self, instance: Instance, arguments: CreateArguments, requester: Requester, *, warnings: tuple[str, ...] = ()
    ) -> Operation:
        """Record a new instance and the operation that launches it, with what its maker should know.

        Raises AlreadyExists, NotFound (its group), ResourceExhausted (its project's quota), Conflict (others kept
        coming first to the same project or group).
        """
        operation = replace(self._new(instance, OperationType.CREATE, arguments, requester), warnings=warnings)
        attempts = _CREATE_ATTEMPTS
        while True:
            attempts -= 1
            try:
                async with self._gatekeeper.turn(instance):
                    return await self._runner.begin(operation, await self._creation(instance, operation))
            except (Conflict, ResourceExhausted) as error:
                if (earlier := await self._earlier(operation)) is not None:
                    return earlier
                if await self._records.get(INSTANCES, keys.instance(instance.name)) is not None:
                    raise AlreadyExists.named(instance.name) from None
                if attempts <= 0 or not isinstance(error, Conflict):
                    raise
            await self._clock.sleep(_CREATE_PAUSE_S)

    async def check_creation(self, instance: Instance) -> None:
        """What `create` would raise of NotFound and ResourceExhausted."""
        await self._gatekeeper.admit_instance(Commit(), instance)

    async def _creation(self, instance: Instance, operation: Operation) -> Commit:
        commit = self._runner.owned(Commit().create(keys.operation(operation.id), operation))
        await self._gatekeeper.admit_instance(commit, instance)
        return commit.create(keys.instance(instance.name), replace(instance, current_operation=operation.name))

    async def submit(
        self,
        instance: Stored[Instance],
        wanted: OperationType,
        arguments: Arguments,
        requester: Requester,
        *,
        leader_epoch: int = 0,
        warnings: tuple[str, ...] = (),
    ) -> Operation:
        """Start an operation on an instance as it was read, interrupting what the table lets it interrupt.

        With `leader_epoch` it only happens while that leadership lasts; `warnings` are kept with it. Raises Locked,
        WrongState, OperationRunning, Conflict (the instance has changed since it was read).
        """
        operation = replace(self._new(instance.value, wanted, arguments, requester), warnings=warnings)
        if (earlier := await self._earlier(operation)) is not None:
            return earlier
        running = await self.check(instance.value, wanted, arguments, admin=requester.admin)
        if running is None and DEFINITIONS[wanted].begins_decided:
            try:
                return await self._runner.begin_decided(operation, self._required(operation, leader_epoch), instance)
            except (StoreUnavailable, StoreIndefinite):
                raise
            except LeewardError as error:
                # What stands against it is for the operation itself to tell, if it may be begun at all.
                log.info("operation.begins_undecided", operation=operation.name, why=error.message)
        return await self._start(instance, instance.value, operation, running, leader_epoch=leader_epoch)

    async def submit_on_node(
        self,
        node: Stored[Node],
        wanted: OperationType,
        arguments: Arguments,
        requester: Requester,
        *,
        change: Callable[[Node], Node] = lambda node: node,
        leader_epoch: int = 0,
    ) -> Operation:
        """The same on a node, which `change` makes what it is from the operation's beginning on. Raises the same."""
        operation = self._new(node.value, wanted, arguments, requester)
        if (earlier := await self._earlier(operation)) is not None:
            return earlier
        running = await self.check_node(node.value, wanted)
        return await self._start(node, change(node.value), operation, running, leader_epoch=leader_epoch)

    async def begin_child(
        self, parent: Operation, instance: Stored[Instance], wanted: OperationType, arguments: Arguments, *, part: str
    ) -> Operation:
        """Begin an operation that is part of `parent`; the same `part` is the same operation. Raises as `submit`."""
        requester = Requester(parent.requested_by, f"{parent.id}/{part}", admin=True, parent=parent.name)
        return await self.submit(instance, wanted, arguments, requester)

    async def cancel_child(self, name: str) -> None:
        """Ask an operation to stop; no error when it cannot any more. Raises StoreUnavailable, StoreIndefinite."""
        with contextlib.suppress(NotFound, FailedPrecondition):
            await self.cancel(name.removeprefix("operations/"), Requester(""))

    async def _start(
        self,
        subject: Stored[Any],
        changed: Subject,
        operation: Operation,
        running: Stored[Operation] | None,
        *,
        leader_epoch: int = 0,
    ) -> Operation:
        commit = self._required(operation, leader_epoch)
        if running is not None:
            operation = replace(operation, predecessor=running.value.name)
            commit.replace(running, replace(running.value, cancel_requested=True))
        commit.create(keys.operation(operation.id), operation)
        if isinstance(operation.arguments, ResizeArguments):
            await self._gatekeeper.admit_resize(commit, subject.value, operation.arguments.resources)
        commit.replace(subject, replace(changed, current_operation=operation.name))
        try:
            return await self._runner.begin(operation, commit)
        except Conflict:
            if (earlier := await self._earlier(operation)) is not None:
                return earlier
            raise

    def _required(self, operation: Operation, leader_epoch: int) -> Commit:
        """What must hold for an operation to begin: its owner and the leadership last, and failover is not disarmed."""
        commit = self._runner.owned(Commit())
        if leader_epoch:
            commit.alive(keys.LEADER, leader_epoch)
        if isinstance(operation.arguments, EvacuateArguments) and operation.arguments.automatic:
            commit.absent(keys.DISARM)
        return commit

    async def check(
        self, instance: Instance, wanted: OperationType, arguments: Arguments, *, admin: bool
    ) -> Stored[Operation] | None:
        """The running operation that this one would interrupt, if any.

        Raises Locked, WrongState, OperationRunning, ResourceExhausted (quota, of a resize).
        """
        check_lock(instance, wanted, admin=admin)
        if isinstance(arguments, ResizeArguments):
            await self._gatekeeper.admit_resize(Commit(), instance, arguments.resources)
        running = await self._running(instance)
        narrowed = None
        if isinstance(arguments, RebootArguments) and arguments.mode is RebootMode.SOFT:
            narrowed = SOFT_REBOOT_FROM
        kind = running.value.type if running else None
        return running if check_allowed(instance, wanted, running=kind, narrowed=narrowed) else None

    async def check_node(self, node: Node, wanted: OperationType) -> Stored[Operation] | None:
        """The running operation that this one would interrupt, if any. Raises WrongState, OperationRunning."""
        running = await self._running(node)
        kind = running.value.type if running else None
        return running if check_node_allowed(node, wanted, running=kind) else None

    async def repeated(self, requester: Requester) -> Operation | None:
        """The operation that this very request started before, if it did; whatever has become of its instance since.

        Raises InvalidArgument when its `request_id` was used for another request.
        """
        if not requester.request_id:
            return None
        return await self._by_request(requester)

    async def cancel(self, operation_id: str, requester: Requester) -> None:
        """Ask a running operation to stop. Whether it still can is told by how it ends.

        Raises NotFound, FailedPrecondition (it is past its commit point).
        """
        while True:
            stored = await self._records.get(OPERATIONS, keys.operation(operation_id))
            if stored is None:
                raise NotFound.named(f"operations/{operation_id}")
            operation = stored.value
            if operation.phase.ended or operation.cancel_requested:
                return
            if DEFINITIONS[operation.type].past_commit(operation.step):
                raise FailedPrecondition(
                    f"{operation.name} is past the point where it could be cancelled: {operation.step} is under way",
                    resource=operation.name,
                )
            try:
                await self._records.commit(Commit().replace(stored, replace(operation, cancel_requested=True)))
                return
            except Conflict:
                continue  # It moved on by a step; look again at where it is now.

    def _new(self, subject: Subject, wanted: OperationType, arguments: Arguments, requester: Requester) -> Operation:
        operation = operation_on(
            subject,
            wanted,
            arguments,
            operation_id=_operation_id(requester) if requester.request_id else self._ids.new(),
            step=DEFINITIONS[wanted].steps[0].name,
            requested_by=requester.principal,
            now=self._clock.now(),
        )
        return replace(
            operation,
            owner=self._runner.controller_id,
            claims=1,
            request_id=requester.request_id,
            request_fingerprint=requester.fingerprint,
            parent=requester.parent,
        )

    async def _earlier(self, operation: Operation) -> Operation | None:
        """The operation that the same request started before. Raises InvalidArgument when it asked something else."""
        if not operation.request_id:
            return None
        requester = Requester(operation.requested_by, operation.request_id, operation.request_fingerprint)
        return await self._by_request(requester)

    async def _by_request(self, requester: Requester) -> Operation | None:
        stored = await self._records.get(OPERATIONS, keys.operation(_operation_id(requester)))
        if stored is None:
            return None
        if stored.value.request_fingerprint != requester.fingerprint:
            raise InvalidArgument.field(
                "request_id",
                f"{requester.request_id!r} was used for another request, {stored.value.name}; use a new id",
            )
        return stored.value

    async def _running(self, subject: Subject) -> Stored[Operation] | None:
        if not subject.current_operation:
            return None
        operation_id = subject.current_operation.removeprefix("operations/")
        stored = await self._records.get(OPERATIONS, keys.operation(operation_id))
        return None if stored is None or stored.value.phase.ended else stored


def _operation_id(requester: Requester) -> str:
    """An operation id that the request itself decides, so that asking twice finds the first."""
    digest = hashlib.sha256(f"{requester.principal}\0{requester.request_id}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:26]
