"""The agents of all nodes over gRPC: one channel a node, kept while its address stays the same."""

import asyncio

import grpc

from leeward.agent.api import AgentApi
from leeward.agent.client import GrpcAgentClient
from leeward.identity import agent_server_name
from leeward.rpc.channel import make_channel
from leeward.tls import TlsMaterial


class GrpcAgents:
    """An `Agents` whose channels demand that the agent at an address is that of the node."""

    def __init__(self, tls: TlsMaterial | None) -> None:
        self._tls = tls
        self._channels: dict[str, tuple[str, grpc.aio.Channel, GrpcAgentClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def at(self, *, node: str, address: str) -> AgentApi:
        """The agent of `node` at `address`; a channel to an earlier address of it is let go."""
        known = self._channels.get(node)
        if known is not None and known[0] == address:
            return known[2]
        if known is not None:
            self._let_go(known[1])
        channel = make_channel(address, self._tls, server_name=agent_server_name(node))
        client = GrpcAgentClient(channel, node=node)
        self._channels[node] = (address, channel, client)
        return client

    def _let_go(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close(grace=None))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all channels."""
        channels = [channel for _, channel, _ in self._channels.values()]
        self._channels.clear()
        await asyncio.gather(*(channel.close(grace=None) for channel in channels), *self._closing)
