"""Calls that the tests of the public API share."""

from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from tests.support.public import Face

from leeward.errors import (
    LeewardError,
)
from leeward.rpc.client_errors import rpc_errors
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb

E = TypeVar("E", bound=LeewardError)

VM = "projects/p/instances/vm"
DEBIAN = "projects/p/images/debian"


async def refused(kind: type[E], call: Awaitable[Any]) -> E:
    """The error that a call must end with."""
    with pytest.raises(kind) as caught, rpc_errors("the controller"):
        await call
    assert type(caught.value) is kind
    return caught.value


def launch(instance_id: str = "vm", **changes: Any) -> pb.CreateInstanceRequest:
    fields: dict[str, Any] = {"flavor": "flavors/small", "image": DEBIAN}
    outer = {key: changes.pop(key) for key in ("parent", "node", "request_id", "validate_only") if key in changes}
    outer.setdefault("parent", "projects/p")
    return pb.CreateInstanceRequest(
        instance_id=instance_id, instance=instance_pb2.Instance(**(fields | changes)), **outer
    )


async def launched(face: Face, instance_id: str = "vm", **changes: Any) -> instance_pb2.Instance:
    operation = await face.ended(await face.instances.CreateInstance(launch(instance_id, **changes)))
    instance = instance_pb2.Instance()
    assert operation.response.Unpack(instance), operation
    return instance
