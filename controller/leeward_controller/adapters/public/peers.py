"""The other replicas, over the same public API that clients use."""

from collections.abc import AsyncGenerator

import grpc

from leeward.identity import CONTROLLER_SERVER_NAME
from leeward.rpc.channel import make_channel
from leeward.rpc.client_errors import rpc_errors
from leeward.tls import TlsMaterial
from leeward.v1 import operation_service_pb2 as pb
from leeward.v1 import operation_service_pb2_grpc
from leeward_controller.adapters.public.convert.values import drain_from_wire, progress_from_wire
from leeward_controller.operations.context import Progress


class GrpcPeers:
    """The `Peers` of a control plane. One channel an address, kept until `close`."""

    def __init__(self, *, tls: TlsMaterial | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def progress(self, *, address: str, operation_id: str) -> AsyncGenerator[Progress, None]:
        """What the replica at `address` tells of an operation, until it ends. Raises Unavailable and what it raises."""
        stub: operation_service_pb2_grpc.OperationServiceAsyncStub = operation_service_pb2_grpc.OperationServiceStub(
            self._channel(address)
        )
        request = pb.WatchOperationRequest(name=f"operations/{operation_id}")
        with rpc_errors(f"the controller at {address}"):
            call = stub.WatchOperation(request)
            try:
                async for response in call:
                    if response.metadata.HasField("drain"):
                        yield drain_from_wire(response.metadata.drain)
                    elif response.metadata.HasField("migration"):
                        progress = progress_from_wire(response.metadata.migration)
                        if progress is not None:
                            yield progress
            finally:
                call.cancel()

    async def close(self) -> None:
        """Let go of all connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = make_channel(address, self._tls, server_name=CONTROLLER_SERVER_NAME)
        return self._channels[address]
