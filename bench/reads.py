"""GetInstance and a page of ListInstances, against a bare echo of the same size."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from bench.echo import METHOD
from bench.layout import CONTROLLERS
from bench.numbers import median, percentile
from bench.plane import PARENT, Plane
from bench.report import Result
from leeward.errors import FailedPrecondition
from leeward.identity import CONTROLLER_SERVER_NAME, Role
from leeward.rpc.channel import make_channel
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1.instance_service_pb2_grpc import InstanceServiceStub
from leeward_lab.hosts.processes import spawn

GETS = 600
LISTS = 120
PAGE = 100
_WARM_UP = 20
_ECHO_PORT = 7445

Call = Callable[[], Awaitable[Any]]


async def measure(plane: Plane) -> Result:
    """One call at a time, the API and the echo in turns."""
    result = Result(
        "reads",
        f"One call at a time over one connection each, in turns: GetInstance ({GETS}×) and a page of {PAGE} instances "
        f"({LISTS}×) through the SDK and through a bare stub, against a bare grpc.aio echo with the same TLS, channel "
        "options and message size. Each read of the API is a linearizable read of etcd.",
    )
    await plane.populate(2 * PAGE)
    name = f"{PARENT}/instances/bench-0"
    listing = await plane.client.list_instances("projects/-")
    if not any(instance.name == name for instance in listing.items):
        name = listing.items[0].name
    get = pb.GetInstanceRequest(name=name)
    page = pb.ListInstancesRequest(parent=PARENT, page_size=PAGE)
    through_sdk: Any = plane.client.instances
    async with _echo(plane) as echo, _bare_stub(plane) as stub:
        reads: tuple[tuple[str, Message, int, Any, Any], ...] = (
            ("Get", get, GETS, through_sdk.GetInstance, stub.GetInstance),
            ("List", page, LISTS, through_sdk.ListInstances, stub.ListInstances),
        )
        for what, request, count, ours, bare in reads:
            size = len((await bare(request)).SerializeToString())
            asked = size.to_bytes(4, "big") + bytes(max(0, len(request.SerializeToString()) - 4))
            calls: dict[str, Call] = {
                "sdk": partial(ours, request),
                "stub": partial(bare, request),
                "echo": partial(echo, asked),
            }
            times = await _in_turns(calls, count)
            result.add(f"{what} through the SDK, p50", 1000 * median(times["sdk"]), "ms")
            result.add(f"{what} through the SDK, p99", 1000 * percentile(times["sdk"], 99), "ms")
            result.add(f"{what} through a bare stub, p50", 1000 * median(times["stub"]), "ms")
            result.add(f"echo of {size} bytes, p50", 1000 * median(times["echo"]), "ms")
            result.add(f"{what} over echo, SDK", median(times["sdk"]) / median(times["echo"]), "×")
            result.add(f"{what} over echo, bare stub", median(times["stub"]) / median(times["echo"]), "×")
    return result


async def _in_turns(calls: dict[str, Call], count: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-_WARM_UP, count):
        for name, call in calls.items():
            began = time.perf_counter()
            await call()
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


@asynccontextmanager
async def _bare_stub(plane: Plane) -> AsyncIterator[Any]:
    channel = make_channel(plane.layout.endpoints[0], plane.tls(), server_name=CONTROLLER_SERVER_NAME)
    try:
        yield InstanceServiceStub(channel)
    finally:
        await channel.close()


@asynccontextmanager
async def _echo(plane: Plane) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    layout = plane.layout
    host, _, _ = layout.controller_address(CONTROLLERS[0]).partition(":")
    address = f"{host}:{_ECHO_PORT}"
    certificates = layout.certificate_directory(Role.CONTROLLER, CONTROLLERS[0])
    server = spawn(
        [sys.executable, "-m", "bench.echo", address, str(certificates)],
        name="echo",
        log=Path(layout.directory) / "log/echo.log",
    )
    channel = make_channel(address, plane.tls(), server_name=CONTROLLER_SERVER_NAME)
    call: Any = channel.unary_unary(METHOD)
    try:
        await _until_answers(call)
        yield call
    finally:
        await channel.close()
        await server.process.stop(grace_s=2.0)


async def _until_answers(call: Any) -> None:
    for _ in range(100):
        try:
            await call(bytes(4), timeout=2.0)
            return
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.1)
    raise FailedPrecondition("the echo server does not answer")
