"""The way in: an operation is made in one transaction with what it says of its instance."""

import base64
import hashlib
from dataclasses import dataclass, replace

from leeward import keys
from leeward.agent.types import RebootMode
from leeward.clock import Clock, Ids
from leeward.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, NotFound
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import (
    Arguments,
    CreateArguments,
    Operation,
    OperationPhase,
    OperationType,
    RebootArguments,
    Work,
)
from leeward_controller.domain.transitions import SOFT_REBOOT_FROM, check_allowed
from leeward_controller.operations.definitions import DEFINITIONS
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.records import INSTANCES, OPERATIONS, Commit, Records, Stored


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks. The same principal with the same `request_id` gets the same operation again, for as long as it is kept.

    `fingerprint` digests the request, so that an id used again for something else is an error and not a surprise.
    """

    principal: str
    request_id: str = ""
    fingerprint: str = ""
    admin: bool = False


class Submitter:
    """Starts operations; this replica drives those it starts."""

    def __init__(self, *, records: Records, runner: OperationRunner, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._runner = runner
        self._clock = clock
        self._ids = ids

    async def create(self, instance: Instance, arguments: CreateArguments, requester: Requester) -> Operation:
        """Record a new instance and the operation that launches it. Raises AlreadyExists."""
        operation = self._new(instance, OperationType.CREATE, arguments, requester)
        commit = self._runner.owned(Commit().create(keys.operation(operation.id), operation))
        commit.create(keys.instance(instance.name), replace(instance, current_operation=operation.name))
        try:
            return await self._begin(operation, commit)
        except Conflict:
            if (earlier := await self._earlier(operation)) is not None:
                return earlier
            if await self._records.get(INSTANCES, keys.instance(instance.name)) is not None:
                raise AlreadyExists.named(instance.name) from None
            raise

    async def submit(
        self,
        instance: Stored[Instance],
        wanted: OperationType,
        arguments: Arguments,
        requester: Requester,
        *,
        leader_epoch: int = 0,
    ) -> Operation:
        """Start an operation on an instance as it was read, interrupting what the table lets it interrupt.

        With `leader_epoch` it only happens while that leadership lasts. Raises WrongState, OperationRunning, Conflict
        (the instance has changed since it was read).
        """
        operation = self._new(instance.value, wanted, arguments, requester)
        if (earlier := await self._earlier(operation)) is not None:
            return earlier
        running = await self.check(instance.value, wanted, arguments)
        commit = Commit()
        if running is not None:
            operation = replace(operation, predecessor=running.value.name)
            commit.replace(running, replace(running.value, cancel_requested=True))
        self._runner.owned(commit.create(keys.operation(operation.id), operation))
        commit.replace(instance, replace(instance.value, current_operation=operation.name))
        if leader_epoch:
            commit.alive(keys.LEADER, leader_epoch)
        try:
            return await self._begin(operation, commit)
        except Conflict:
            if (earlier := await self._earlier(operation)) is not None:
                return earlier
            raise

    async def _begin(self, operation: Operation, commit: Commit) -> Operation:
        with self._runner.submitting(operation.id):
            revision = await self._records.commit(commit)
            self._runner.drive(Stored(keys.operation(operation.id), operation, revision, revision))
        return operation

    async def check(self, instance: Instance, wanted: OperationType, arguments: Arguments) -> Stored[Operation] | None:
        """The running operation that this one would interrupt, if any. Raises WrongState, OperationRunning."""
        running = await self._running(instance)
        narrowed = None
        if isinstance(arguments, RebootArguments) and arguments.mode is RebootMode.SOFT:
            narrowed = SOFT_REBOOT_FROM
        kind = running.value.type if running else None
        return running if check_allowed(instance, wanted, running=kind, narrowed=narrowed) else None

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

    def _new(self, instance: Instance, wanted: OperationType, arguments: Arguments, requester: Requester) -> Operation:
        now = self._clock.now()
        return Operation(
            id=_operation_id(requester) if requester.request_id else self._ids.new(),
            type=wanted,
            instance=instance.name,
            instance_uid=instance.uid,
            arguments=arguments,
            phase=OperationPhase.RUNNING,
            step=DEFINITIONS[wanted].steps[0].name,
            requested_by=requester.principal,
            create_time=now,
            update_time=now,
            work=Work(),
            owner=self._runner.controller_id,
            claims=1,
            request_id=requester.request_id,
            request_fingerprint=requester.fingerprint,
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

    async def _running(self, instance: Instance) -> Stored[Operation] | None:
        if not instance.current_operation:
            return None
        operation_id = instance.current_operation.removeprefix("operations/")
        stored = await self._records.get(OPERATIONS, keys.operation(operation_id))
        return None if stored is None or stored.value.phase.ended else stored


def _operation_id(requester: Requester) -> str:
    """An operation id that the request itself decides, so that asking twice finds the first."""
    digest = hashlib.sha256(f"{requester.principal}\0{requester.request_id}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:26]
