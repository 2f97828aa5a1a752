"""What an operation is about: an instance or a node. Both know the one operation that runs on them."""

from datetime import datetime
from typing import Any

from leeward import keys
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node
from leeward_controller.domain.operation import Arguments, Operation, OperationPhase, OperationType
from leeward_controller.records import INSTANCES, NODES, Kind, Records, Stored

Subject = Instance | Node


async def read_subject(records: Records, operation: Operation, *, since: int | None) -> Stored[Any] | None:
    """The record that an operation is about; None when it is gone, or another one has its name by now.

    It is as it was at revision `since` of the store, or later (None: as it is now). The one at which the operation was
    last written is enough, as nobody else changes what matters to it while it runs, and what it writes is compared.
    Raises StoreUnavailable.
    """
    kind: Kind[Any] = NODES if operation.node else INSTANCES
    found = await records.get_since(kind, subject_key(operation), since=since)
    return found if found is not None and found.value.uid == operation.subject_uid else None


def subject_key(operation: Operation) -> str:
    """Where that record is kept."""
    return keys.node(operation.node) if operation.node else keys.instance(operation.instance)


def operation_on(
    subject: Subject,
    wanted: OperationType,
    arguments: Arguments,
    *,
    operation_id: str,
    step: str,
    requested_by: str,
    now: datetime,
) -> Operation:
    """An operation that is about to begin at its first step."""
    is_node = isinstance(subject, Node)
    return Operation(
        id=operation_id,
        type=wanted,
        instance="" if is_node else subject.name,
        instance_uid="" if is_node else subject.uid,
        node=subject.node if is_node else "",
        node_uid=subject.uid if is_node else "",
        arguments=arguments,
        phase=OperationPhase.RUNNING,
        step=step,
        requested_by=requested_by,
        create_time=now,
        update_time=now,
    )
