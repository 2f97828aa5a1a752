"""What a controller costs while nothing happens: 100 nodes, 1,000 instances."""

import asyncio

from bench.plane import Plane
from bench.processes import cpu_seconds
from bench.report import Result
from leeward import keys
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.cluster import Controller

INSTANCES = 1000
_SETTLE_S = 8.0
_MEASURE_S = 30.0


async def measure(plane: Plane) -> Result:
    """Let everything settle, then count processor time."""
    result = Result(
        "idle",
        f"Processor time over {_MEASURE_S:g} s, as a share of one core, with {plane.layout.hosts} simulated hosts and "
        f"at least {INSTANCES} instances, no client and no operation.",
    )
    await plane.populate(INSTANCES)
    leader = await _leader(plane)
    await asyncio.sleep(_SETTLE_S)
    before = {part: cpu_seconds(plane.pid(part)) for part in plane.parts}
    await asyncio.sleep(_MEASURE_S)
    for part in plane.parts:
        percent = 100 * (cpu_seconds(plane.pid(part)) - before[part]) / _MEASURE_S
        role = part
        if part.startswith("control"):
            role = "the controller that leads" if part == leader else "a controller that follows"
        elif part == "hosts":
            role = "the simulated hosts, all together"
        result.add(role, percent, "% of a core")
    return result


async def _leader(plane: Plane) -> str:
    async with plane.store() as store:
        found = await store.get(keys.LEADER)
    if found is None:
        return ""
    address = StateCodec().decode(Controller, found.value).address
    return next((part for part in plane.parts if part.startswith("control")
                 and plane.layout.controller_address(part) == address), "")  # fmt: skip
