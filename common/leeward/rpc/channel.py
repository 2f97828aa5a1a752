"""Client channels: mutual TLS, and peers that stop answering are noticed within seconds.

The options are those of gRPC's core (`grpc/impl/channel_arg_names.h`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    # It brings a library for certificates along, which plain text has no use for and the CLI no time.
    from leeward.tls import TlsMaterial

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024

PING_INTERVAL_S = 6
"""How often an idle connection is tried. etcd refuses less than 5 s; our own servers permit every 2 s and more."""

PING_TIMEOUT_S = 3
"""How long a ping may go unanswered before the connection counts as lost."""

_CONNECT_TIMEOUT_S = 3
_MAX_BACKOFF_S = 2

Option = tuple[str, int | str]


def make_channel(
    target: str,
    tls: "TlsMaterial | None",
    *,
    server_name: str | None = None,
    ping_interval_s: float = PING_INTERVAL_S,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """A channel to `target`, e.g. `10.0.0.5:7443`, `host:7443`, `unix:/run/x.sock`; it connects at the first call.

    With `tls` the server must prove `server_name` (see `leeward.identity`), or the name in `target` when there is none
    given. Without, it is plain text. Messages are limited to MAX_MESSAGE_BYTES each way.
    """
    options = list(channel_options(ping_interval_s=ping_interval_s))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=list(interceptors))
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    credentials = tls.channel_credentials()
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=list(interceptors))


def channel_options(*, ping_interval_s: float = PING_INTERVAL_S) -> tuple[Option, ...]:
    """The options of every client channel."""
    return (
        *message_options(),
        ("grpc.keepalive_time_ms", round(ping_interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_S * 1000),
        # The keepalive's own timeout does not bound the ping: alone, it leaves a stopped peer undetected for a minute.
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_S * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # The minimum also bounds one attempt to connect. By default it takes 20 s to give up, and up to 120 s to retry.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_S * 1000),
        ("grpc.max_reconnect_backoff_ms", _MAX_BACKOFF_S * 1000),
        # A cluster's own traffic goes to its members, whatever proxy the environment names for the outside world.
        ("grpc.enable_http_proxy", 0),
        # Two channels to one address must not share one connection and its back-off.
        ("grpc.use_local_subchannel_pool", 1),
    )


def message_options() -> tuple[Option, ...]:
    """The limits on sizes, the same for clients and servers."""
    return (
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `1.2.3.4:port` or `[::1]:port`. Raises InvalidArgument."""
    host, separator, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not separator or not bare or (":" in bare) != (bare != host) or not port.isdecimal() or int(port) > 65_535:
        raise InvalidArgument.field("address", f"{address!r} is not host:port, 1.2.3.4:port or [::1]:port")
    return bare, int(port)
