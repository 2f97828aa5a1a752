"""Which of etcd's errors mean that nothing was written."""

import grpc
import pytest

from leeward.errors import (
    InvalidArgument,
    LeaseNotFound,
    LeewardError,
    PermissionDenied,
    StoreIndefinite,
    StoreUnavailable,
    Unauthenticated,
)
from leeward.store.etcd.failures import translate

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (CODE.UNAVAILABLE, "etcdserver: no leader", StoreUnavailable),
        (CODE.UNAVAILABLE, "failed to connect to all addresses; last error: refused", StoreUnavailable),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", StoreUnavailable),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", StoreUnavailable),
        (CODE.UNAVAILABLE, "etcdserver: leader changed", StoreIndefinite),
        (CODE.UNAVAILABLE, "etcdserver: request timed out", StoreIndefinite),
        (CODE.UNAVAILABLE, "etcdserver: server stopped", StoreIndefinite),
        (CODE.UNAVAILABLE, "recvmsg: Connection reset by peer", StoreIndefinite),
        (CODE.UNAVAILABLE, "Socket closed", StoreIndefinite),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", StoreIndefinite),
        (CODE.UNKNOWN, "something new", StoreIndefinite),
        (CODE.INTERNAL, "Received RST_STREAM with error code 2", StoreIndefinite),
        (CODE.DATA_LOSS, "etcdserver: corrupt cluster", StoreIndefinite),
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
        (CODE.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", InvalidArgument),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", PermissionDenied),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", Unauthenticated),
        (CODE.INVALID_ARGUMENT, "etcdserver: user name is empty", Unauthenticated),
    ],
)
def test_an_error_is_definite_only_when_that_is_certain(
    code: grpc.StatusCode, details: str, expected: type[LeewardError]
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
    translated = translate(error, what="Txn at m1")
    assert type(translated) is expected
    assert translated.message == f"Txn at m1: {details}" or details in translated.message
