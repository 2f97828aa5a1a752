"""What is in a `google.longrunning.Operation` of Leeward."""

from google.longrunning.operations_pb2 import Operation

from leeward.errors import LeewardError
from leeward.rpc.status import error_from
from leeward.v1.operation_pb2 import OperationMetadata


def metadata_of(operation: Operation) -> OperationMetadata:
    """Its metadata; empty when it has none."""
    metadata = OperationMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def error_of(operation: Operation) -> LeewardError | None:
    """Why it failed, or None when it has not. The error's metadata names the operation."""
    if operation.WhichOneof("result") != "error":
        return None
    error = error_from(operation.error)
    error.metadata.setdefault("operation", operation.name)
    return error
