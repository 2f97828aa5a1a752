"""Between the port's values and etcd's messages."""

from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.port import Change, Condition, CreateRevisionIs, KeyValue, Mutation, Put

# etcd's way to say "without end".
_NO_END = b"\0"


def range_of(prefix: str) -> tuple[bytes, bytes]:
    """The first key and the exclusive end of the keys that begin with `prefix`."""
    first = prefix.encode()
    if not first:
        return b"\0", _NO_END
    # The last byte of UTF-8 is never 0xff, so adding one to it is always possible.
    return first, first[:-1] + bytes([first[-1] + 1])


def after(key: str) -> bytes:
    """The first possible key after `key`."""
    return key.encode() + b"\0"


def key_value(message: pb.KeyValue) -> KeyValue:
    """One key as read."""
    return KeyValue(
        key=message.key.decode(),
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        lease_id=message.lease,
    )


def change(event: pb.Event) -> Change:
    """One change as watched."""
    return Change(
        key=event.kv.key.decode(),
        value=None if event.deleted else event.kv.value,
        create_revision=event.kv.create_revision,
        mod_revision=event.kv.mod_revision,
        lease_id=event.kv.lease,
    )


def compare(condition: Condition) -> pb.Compare:
    """A condition as etcd compares it. A key that does not exist has both revisions 0."""
    key = condition.key.encode()
    if isinstance(condition, CreateRevisionIs):
        return pb.Compare(target=pb.COMPARE_TARGET_CREATE, key=key, create_revision=condition.revision)
    return pb.Compare(target=pb.COMPARE_TARGET_MOD, key=key, mod_revision=condition.revision)


def operation(mutation: Mutation) -> pb.RequestOp:
    """A mutation as a step of etcd's transaction."""
    key = mutation.key.encode()
    if isinstance(mutation, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=mutation.value, lease=mutation.lease_id))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
