"""The controllers that a client may talk to, one channel each."""

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from leeward.errors import InvalidArgument
from leeward.identity import CONTROLLER_SERVER_NAME
from leeward.rpc.channel import make_channel, split_address

if TYPE_CHECKING:
    from leeward.tls import TlsMaterial


class Endpoints:
    """A ring of channels. Calls stick to the current one until it is left.

    Channels connect at their first call, so endpoints that are never needed are never dialled.
    """

    def __init__(self, addresses: Sequence[str], *, tls: "TlsMaterial | None") -> None:
        """Raises InvalidArgument for an address that is none, or that plain text must not go to."""
        self.addresses = parse_endpoints(addresses)
        if tls is None:
            _check_plain(self.addresses)
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._current = 0

    @property
    def current(self) -> str:
        """The endpoint that calls go to now."""
        return self.addresses[self._current]

    def leave(self, address: str) -> None:
        """Go on with the next endpoint, unless somebody has left `address` already."""
        if address == self.current:
            self._current = (self._current + 1) % len(self.addresses)

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to that endpoint."""
        if address not in self._channels:
            server_name = CONTROLLER_SERVER_NAME if self._tls else None
            self._channels[address] = make_channel(address, self._tls, server_name=server_name)
        return self._channels[address]

    async def close(self) -> None:
        """Close every channel, with the calls that still run on them."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


def parse_endpoints(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """The endpoints in one or several texts, each `host:port`, `unix:/path` or several of them joined by commas.

    Repetitions are dropped. Raises InvalidArgument when there is none, or one is malformed.
    """
    texts = [addresses] if isinstance(addresses, str) else addresses
    found = tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(",") if part.strip()))
    if not found:
        raise InvalidArgument.field("endpoint", "none is given; one looks like 10.0.0.5:7443")
    for address in found:
        if not address.startswith("unix:"):
            split_address(address)
    return found


def _check_plain(addresses: Sequence[str]) -> None:
    for address in addresses:
        if not _is_local(address):
            raise InvalidArgument.field(
                "endpoint", f"{address} is not on this machine: plain text is for loopback only, so TLS is needed"
            )


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name could resolve to anything; this one is defined to be loopback (RFC 6761, section 6.3).
        return host == "localhost"
