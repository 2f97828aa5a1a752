"""Operations, as `google.longrunning` has them."""

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from leeward.errors import DOMAIN
from leeward.v1 import image_pb2, instance_pb2, node_pb2, operation_service_pb2
from leeward.v1 import operation_pb2 as pb
from leeward_controller.adapters.public.convert.catalog import image_to_wire
from leeward_controller.adapters.public.convert.instance import instance_to_wire
from leeward_controller.adapters.public.convert.node import node_to_wire, proof_to_wire
from leeward_controller.adapters.public.convert.values import drain_to_wire, progress_to_wire, step_to_wire, timestamp
from leeward_controller.domain.node_operation import DrainProgress, FenceNodeArguments
from leeward_controller.domain.operation import OperationError, OperationPhase, OperationType, SnapshotArguments
from leeward_controller.services.shown import ShownOperation


def operation_to_wire(shown: ShownOperation) -> operations_pb2.Operation:
    """The operation with its metadata, and its response or error when it has ended; no name when only checked."""
    return _with_metadata(shown, metadata_of(shown))


def _with_metadata(shown: ShownOperation, metadata: pb.OperationMetadata) -> operations_pb2.Operation:
    operation = shown.operation
    message = operations_pb2.Operation(name=operation.name if operation.id else "", done=operation.phase.ended)
    message.metadata.Pack(metadata)
    if operation.phase is OperationPhase.SUCCEEDED:
        message.response.Pack(_response_of(shown))
    elif operation.phase.ended and operation.error is not None:
        message.error.CopyFrom(_status(operation.error))
    return message


def metadata_of(shown: ShownOperation) -> pb.OperationMetadata:
    """How far it is."""
    operation, work = shown.operation, shown.operation.work
    message = pb.OperationMetadata(
        type=pb.OperationType.Value(f"OPERATION_TYPE_{operation.type.name}"),
        instance=operation.instance,
        instance_uid=operation.instance_uid,
        node=f"nodes/{operation.node}" if operation.node else "",
        parent_operation=operation.parent,
        phase=pb.OperationPhase.Value(f"OPERATION_PHASE_{operation.phase.name}"),
        step=operation.step,
        steps=[step_to_wire(step) for step in operation.history],
        percent=shown.percent,
        attempt=work.attempt + 1,
        source_node=f"nodes/{work.source_node}" if work.source_node else "",
        target_node=f"nodes/{work.target_node}" if work.target_node else "",
        requested_by=operation.requested_by,
        request_id=operation.request_id,
        cancel_requested=operation.cancel_requested,
        create_time=timestamp(operation.create_time),
        update_time=timestamp(operation.update_time),
        controller=operation.owner,
        note=work.note,
        warnings=operation.warnings,
    )
    if isinstance(shown.progress, DrainProgress):
        message.drain.CopyFrom(drain_to_wire(shown.progress))
    elif shown.progress is not None:
        message.migration.CopyFrom(progress_to_wire(shown.progress))
    if operation.undo_cause is not None:
        message.undo_cause.CopyFrom(_status(operation.undo_cause))
    if operation.end_time is not None:
        message.end_time.CopyFrom(timestamp(operation.end_time))
    return message


def watch_response(shown: ShownOperation) -> operation_service_pb2.WatchOperationResponse:
    """One moment of an operation."""
    metadata = metadata_of(shown)
    return operation_service_pb2.WatchOperationResponse(
        operation=_with_metadata(shown, metadata), metadata=metadata, revision=shown.revision
    )


def _response_of(shown: ShownOperation) -> Message:
    """What it led to; where that has gone since, its name and uid are all that is left."""
    operation = shown.operation
    if operation.type in (OperationType.DELETE, OperationType.REMOVE_NODE):
        return Empty()
    if isinstance(operation.arguments, FenceNodeArguments):
        over = node_pb2.FenceProof(node=operation.subject, boot_id=operation.arguments.boot_id)
        return proof_to_wire(shown.proof) if shown.proof else over
    if operation.node:
        return node_to_wire(shown.node) if shown.node else node_pb2.Node(name=operation.subject, uid=operation.node_uid)
    if isinstance(operation.arguments, SnapshotArguments):
        gone = image_pb2.Image(name=operation.arguments.image, uid=operation.id)
        return image_to_wire(shown.image) if shown.image else gone
    if shown.instance is not None:
        return instance_to_wire(shown.instance)
    return instance_pb2.Instance(name=operation.instance, uid=operation.instance_uid)


def _status(error: OperationError) -> Status:
    status = Status(code=error.code, message=error.message)
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    return status
