"""One member of the etcd cluster: one channel, and calls that end in time and in Leeward's errors."""

import asyncio

import grpc

from leeward.errors import InvalidArgument, LeewardError, StoreIndefinite, StoreUnavailable, Unavailable
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd.failures import translate
from leeward.store.etcd.methods import RANGE, Method, RequestT, ResponseT
from leeward.store.etcd.tls import EtcdTls

# A member without a leader answers with an error at once, instead of letting the call wait.
METADATA = (("hasleader", "true"),)

# A page of a list is at most 500 values of at most 1.5 MiB.
_MAX_MESSAGE_BYTES = 1 << 30

_OPTIONS: tuple[tuple[str, int], ...] = (
    # etcd drops clients that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    # Both are needed: the first alone left a stopped peer unnoticed for more than a minute.
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # Whether a call is sent again is decided here, by whether it may have happened, and by nothing else.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy meant for the web must not come between a node and its lease.
    ("grpc.enable_http_proxy", 0),
)


def check_endpoint(endpoint: str) -> str:
    """`host:port`, where the host is a DNS name, an IPv4 address or an IPv6 address in brackets."""
    host, separator, port = endpoint.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or "/" in endpoint or (":" in host and not bracketed):
        raise InvalidArgument.field("endpoint", f"{endpoint!r} is not host:port; an IPv6 address needs brackets")
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidArgument.field("endpoint", f"{endpoint!r} has no port between 1 and 65535")
    return endpoint


def is_cancelled() -> bool:
    """Whether a CancelledError means what it says.

    gRPC raises one also in tasks that nobody cancelled, when the call was cancelled or its channel closed.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Member:
    """A channel to one endpoint. It connects when first used and again by itself whenever the connection is lost."""

    def __init__(self, endpoint: str, tls: EtcdTls | None) -> None:
        self.endpoint = check_endpoint(endpoint)
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    async def connect(self, *, timeout_s: float) -> None:
        """Return once there is a connection. Raises StoreUnavailable, in which case nothing was written."""
        channel = self._open_channel()
        try:
            async with asyncio.timeout(timeout_s):
                state = channel.get_state(try_to_connect=True)
                while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise StoreUnavailable(f"{self.endpoint} did not accept a connection in {timeout_s:.1f} s") from None
        except grpc.aio.UsageError:
            raise StoreUnavailable(f"{self.endpoint}: the store is closed") from None
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await self._find_out_why(timeout_s=timeout_s)

    async def _find_out_why(self, *, timeout_s: float) -> None:
        """gRPC tells only a call why there is no connection, so make one that changes nothing."""
        try:
            await self.call(RANGE, pb.RangeRequest(key=b"\0", count_only=True), timeout_s=timeout_s)
        except Unavailable as error:
            raise StoreUnavailable(error.message) from None
        except LeewardError:
            # It refused to tell, so there is a connection by now.
            return

    async def call(self, method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float) -> ResponseT:
        """Call once. Raises what `failures.translate` makes of the error: StoreIndefinite if it may have happened."""
        what = f"{method.path} at {self.endpoint}"
        channel = self._open_channel()
        stub = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return await stub(request, timeout=timeout_s, metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            raise translate(error, what=what) from None
        except asyncio.CancelledError:
            if self._closed and not is_cancelled():
                raise StoreIndefinite(f"{what}: the store was closed") from None
            raise

    def stream(self, method: Method[RequestT, ResponseT]) -> "grpc.aio.StreamStreamCall[RequestT, ResponseT]":
        """Start a stream both ways. The caller bounds its reads and writes."""
        stub: grpc.aio.StreamStreamMultiCallable[RequestT, ResponseT] = self._open_channel().stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return stub(metadata=METADATA)

    async def close(self) -> None:
        """End every call and the connection."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _open_channel(self) -> grpc.aio.Channel:
        # The channel belongs to the event loop on which it is made, so it is made by the first call.
        if self._closed:
            raise StoreUnavailable(f"{self.endpoint}: the store is closed")
        if self._channel is None:
            target = f"dns:///{self.endpoint}"
            if self._tls is None:
                self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(
                    target, self._tls.credentials(), options=(*_OPTIONS, *self._name_options(self._tls))
                )
        return self._channel

    def _name_options(self, tls: EtcdTls) -> tuple[tuple[str, str], ...]:
        name = tls.server_names.get(self.endpoint)
        return (("grpc.ssl_target_name_override", name),) if name else ()
