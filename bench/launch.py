"""Launches a second, and how long one takes, through the public API of two controllers."""

import asyncio
import time
from dataclasses import dataclass

from bench.numbers import add_latency
from bench.plane import Plane
from bench.processes import cpu_seconds
from bench.report import Result

LAUNCHES = 300
CONCURRENCY = 32
_WARM_UP = 10


@dataclass(slots=True)
class _Timed:
    accepted_s: float
    active_s: float


async def measure(plane: Plane) -> Result:
    """Launch instances from several workers, half of them through each controller."""
    result = Result(
        "launch",
        f"{LAUNCHES} CreateInstance calls by {CONCURRENCY} workers, half to each of two controllers, each followed by "
        "the SDK's wait; from the call to the operation being done. 100 simulated hosts (starting a guest takes 50 ms "
        "there), one etcd with fsync, mutual TLS everywhere, all on this machine.",
    )
    for number in range(_WARM_UP):
        await plane.launch(f"warm-{number}", client=plane.clients[number % 2])
    before = {part: cpu_seconds(plane.pid(part)) for part in plane.parts}
    own_before = time.process_time()
    began = time.monotonic()
    timed = await _launch_all(plane)
    took_s = time.monotonic() - began
    result.add("launches", len(timed) / took_s, "a second")
    add_latency(result, "launch", [each.active_s for each in timed])
    add_latency(result, "accepted", [each.accepted_s for each in timed])
    for part in plane.parts:
        used_s = cpu_seconds(plane.pid(part)) - before[part]
        result.add(f"CPU of {part}", 1000 * used_s / len(timed), "ms a launch")
    result.add("CPU of the client", 1000 * (time.process_time() - own_before) / len(timed), "ms a launch")
    return result


async def _launch_all(plane: Plane) -> list[_Timed]:
    timed: list[_Timed] = []
    numbers = iter(range(LAUNCHES))

    async def work(worker: int) -> None:
        client = plane.clients[worker % len(plane.clients)]
        for number in numbers:
            began = time.monotonic()
            one = _Timed(0.0, 0.0)

            def accepted(one: _Timed = one, began: float = began) -> None:
                one.accepted_s = time.monotonic() - began

            await plane.launch(f"bench-{number}", client=client, accepted=accepted)
            one.active_s = time.monotonic() - began
            timed.append(one)

    async with asyncio.TaskGroup() as group:
        for worker in range(CONCURRENCY):
            group.create_task(work(worker))
    return timed
