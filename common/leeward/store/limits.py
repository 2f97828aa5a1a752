"""The bounds of one transaction, held before anything is sent and by both stores in the same way."""

from collections.abc import Sequence

from leeward.errors import FieldViolation, InvalidArgument
from leeward.store.port import (
    MAX_OPERATIONS_PER_TRANSACTION,
    MAX_REQUEST_BYTES,
    Condition,
    Mutation,
    Put,
)

# More than protobuf ever adds around one key: tags, lengths, revisions and a lease id.
_OVERHEAD_BYTES = 64


def check_transaction(conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> None:
    """Raises InvalidArgument for what etcd would refuse: too many, too large, an empty key, or one key twice.

    etcd lets a transaction delete the same key twice, but neither write one twice nor write and delete one.
    """
    for name, count in (("conditions", len(conditions)), ("mutations", len(mutations))):
        if count > MAX_OPERATIONS_PER_TRANSACTION:
            raise InvalidArgument.field(name, f"{count} are more than {MAX_OPERATIONS_PER_TRANSACTION}")
    size_bytes = sum(len(condition.key.encode()) + _OVERHEAD_BYTES for condition in conditions)
    written: set[str] = set()
    deleted: set[str] = set()
    for mutation in mutations:
        size_bytes += len(mutation.key.encode()) + _OVERHEAD_BYTES
        if isinstance(mutation, Put):
            size_bytes += len(mutation.value)
            if mutation.key in written:
                raise InvalidArgument.field("mutations", f"{mutation.key} is written twice")
            written.add(mutation.key)
        else:
            deleted.add(mutation.key)
    if both := written & deleted:
        raise InvalidArgument.field("mutations", f"{min(both)} is both written and deleted")
    if "" in written or "" in deleted or any(not condition.key for condition in conditions):
        raise InvalidArgument("a key is empty", fields=[FieldViolation("key", "must not be empty")])
    if size_bytes > MAX_REQUEST_BYTES:
        raise InvalidArgument.field("mutations", f"{size_bytes} bytes are more than {MAX_REQUEST_BYTES}")
