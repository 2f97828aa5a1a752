"""Other nodes' agents over gRPC, for copying from their pools."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from leeward.agent.client import connect_agent
from leeward.agent.types import PoolSource
from leeward.tls import TlsMaterial
from leeward_agent.ports import PeerDisks


class GrpcPeers:
    """Connects anew each time; the other agent must prove its node's name."""

    def __init__(self, tls: TlsMaterial | None) -> None:
        self._tls = tls

    @asynccontextmanager
    async def connect(self, source: PoolSource) -> AsyncGenerator[PeerDisks, None]:
        """The agent that offers this pool, as long as the context lasts."""
        async with connect_agent(source.node, source.address, self._tls) as agent:
            yield agent
