"""The SDK: Leeward's public API for asyncio programs.

    async with connect(["10.0.0.1:7443", "10.0.0.2:7443"], tls=TlsMaterial.load(directory)) as client:
        operation = await client.instances.StopInstance(StopInstanceRequest(name="projects/default/instances/web-1"))
        await client.wait(operation)

What fails raises an error of `leeward.errors`.
"""

from leeward.client.client import Client, Listing, connect
from leeward.client.endpoints import parse_endpoints
from leeward.client.failover import Limits
from leeward.client.operations import error_of, metadata_of
from leeward.client.watching import Change, ChangeKind

__all__ = [
    "Change",
    "ChangeKind",
    "Client",
    "Limits",
    "Listing",
    "connect",
    "error_of",
    "metadata_of",
    "parse_endpoints",
]
