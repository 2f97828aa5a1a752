"""The story's stage without root: the real API, controllers and agents over simulated hosts, in this process."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from leeward.client import Client, connect
from leeward.clock import RandomIds, SystemClock
from leeward_agent.hypervisors.simulated.files import read_record
from leeward_agent.hypervisors.simulated.guest import SimulatedTiming
from leeward_lab.demo.stage import DiskRecord
from leeward_lab.simulated.cluster import SimulatedCluster
from leeward_lab.simulated.serving import ready, serving

_NODES = 3
_TIMING = SimulatedTiming(start_s=0.3, memory_mib_s=96.0, dirty_mib_s=8.0)


class SimulatedStage:
    """A `Stage` over a simulated cluster."""

    hypervisor = "simulated"
    image_format = "raw"

    def __init__(self, cluster: SimulatedCluster, client: Client, *, image: Path, pool: Path) -> None:
        self.client = client
        self.image = image
        self._cluster = cluster
        self._pool = pool

    async def cut_power(self, host: str) -> None:
        """The simulated host is off, with all that it ran."""
        await self._cluster.nodes[host].power_off()

    async def processes_of(self, uid: str) -> list[str]:
        """The simulated hosts on which the guest can write its disk."""
        return self._cluster.world.running_on(uid)

    async def disk_record(self, uid: str) -> DiskRecord:
        """What stands beside the guest's disk."""
        record = read_record(self._pool / "instances" / uid / "root.qcow2")
        return DiskRecord(record.boots, record.lines)


@asynccontextmanager
async def simulated_stage(directory: Path) -> AsyncIterator[SimulatedStage]:
    """Start two controllers and three hosts in this process, and end them."""
    pool = directory / "pool"
    pool.mkdir(parents=True)
    image = directory / "tiny.raw"
    image.write_bytes(bytes(8 * 2**20))
    cluster = SimulatedCluster(
        clock=SystemClock(),
        ids=RandomIds(),
        rng=random.SystemRandom(),
        nodes=_NODES,
        timing=_TIMING,
        files=pool,
    )
    await cluster.start_nodes()
    try:
        async with (
            serving(cluster, "control-1", listen="127.0.0.1:0") as one,
            serving(cluster, "control-2", listen="127.0.0.1:0") as other,
            connect((one.address, other.address)) as client,
        ):
            await ready(one, nodes=_NODES)
            yield SimulatedStage(cluster, client, image=image, pool=pool)
    finally:
        await cluster.stop()
