"""What Leeward adds to a live migration: against libvirt alone, with the same guest between the same two hosts."""

import asyncio
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.numbers import median
from bench.report import Result
from bench.twin import Twin
from leeward.client import Client
from leeward.client.operations import metadata_of
from leeward.v1 import flavor_service_pb2, instance_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DISK_FORMAT_QCOW2
from leeward.v1.instance_pb2 import Instance
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.hosts.waiting import until
from leeward_lab.real.cluster import RealCluster, running
from leeward_lab.real.layout import Shape

PAIRS = 9
MEMORY_MIB = 512
BALLAST_MIB = 288
BANDWIDTH_MIB_S = 112  # What a link of 1 Gbit/s carries.
TARGET = 1.10
_FREE_PAIRS = 5
_PARENT = "projects/default"
_NAME = f"{_PARENT}/instances/bench"
_HOSTS = ("host-a", "host-b")
_BOOT_S = 90.0
_MIGRATE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Pair:
    """Seconds of two migrations, one right after the other."""

    ours: float
    bare: float


@dataclass(slots=True)
class _Times:
    """All pairs, by what libvirt's migration went over, and the steps of ours."""

    unix: list[_Pair] = field(default_factory=list)
    tcp: list[_Pair] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)


async def measure(directory: Path, *, pairs: int) -> Result:
    """Alternate, in one run."""
    result = Result(
        "migration",
        f"Guests of {MEMORY_MIB} MiB, {BALLAST_MIB} MiB of it filled with data, on two lab hosts with real libvirt and "
        "QEMU (TCG). In turns, in the same direction: Leeward through the public API until the operation is done "
        "(bookkeeping, both agents, the tunnel over mutual TLS); a bare migrateToURI3 over unix sockets with nothing "
        "between; and, after another migration by Leeward, the same call over plain TCP on the bridge. The twin that "
        "libvirt moves has the same devices, image and flags. Ratios are medians over rounds: "
        f"{pairs} rounds at {BANDWIDTH_MIB_S} MiB/s, which is what 1 Gbit/s carries, and {_FREE_PAIRS} without a "
        "limit, where the cores of this machine do the work of both hosts and of everything else.",
    )
    async with running(directory, "bench", shape=Shape(hosts=len(_HOSTS))) as cluster, cluster.client() as client:
        await cluster.until_ready(client)
        image = await asyncio.to_thread(
            build_guest_image, directory / "ballast.qcow2", cache_dir=default_cache_dir(), ballast_mib=BALLAST_MIB
        )
        twin = await _start(cluster, client, image)
        mover = _Mover(client, twin)
        await mover.round(_Times(), bandwidth_mib_s=0)
        limited, free = _Times(), _Times()
        for _ in range(pairs):
            await mover.round(limited, bandwidth_mib_s=BANDWIDTH_MIB_S)
        for _ in range(_FREE_PAIRS):
            await mover.round(free, bandwidth_mib_s=0)
    _tell(result, limited, f"at {BANDWIDTH_MIB_S} MiB/s", target=TARGET)
    _tell(result, free, "unlimited", target=None)
    return result


def _tell(result: Result, times: _Times, conditions: str, *, target: float | None) -> None:
    result.add(f"Leeward, {conditions}", median([pair.ours for pair in (*times.unix, *times.tcp)]), "s")
    for way, pairs in (("unix sockets", times.unix), ("TCP", times.tcp)):
        result.add(f"libvirt alone over {way}, {conditions}", median([pair.bare for pair in pairs]), "s")
        ratio = median([pair.ours / pair.bare for pair in pairs])
        result.add(f"Leeward over libvirt alone, {way}, {conditions}", ratio, "×", at_most=target)
    result.details[conditions] = asdict(times)


async def _start(cluster: RealCluster, client: Client, image: Path) -> Twin:
    await client.upload_image(parent=_PARENT, image_id="ballast", path=image, format=DISK_FORMAT_QCOW2)
    flavor = Flavor(vcpus=1, memory_mib=MEMORY_MIB, disk_gib=1)
    await client.flavors.CreateFlavor(
        flavor_service_pb2.CreateFlavorRequest(flavor_id="bench", flavor=flavor), timeout=10.0
    )
    wanted = Instance(flavor="flavors/bench", image=f"{_PARENT}/images/ballast")
    request = instance_service_pb2.CreateInstanceRequest(
        parent=_PARENT, instance_id="bench", instance=wanted, node=f"nodes/{_HOSTS[0]}"
    )
    await client.wait(await client.instances.CreateInstance(request, timeout=10.0), timeout_s=_BOOT_S)
    await _until_ticking(client)
    instance = await client.instances.GetInstance(instance_service_pb2.GetInstanceRequest(name=_NAME), timeout=10.0)
    twin = Twin(cluster, python=sys.executable)
    await twin.start(_HOSTS[0], like=f"leeward-{instance.uid}", image=image)
    return twin


async def _until_ticking(client: Client) -> None:
    request = instance_service_pb2.GetConsoleLogRequest(name=_NAME)

    async def ticks() -> bool:
        return b"tick" in (await client.instances.GetConsoleLog(request, timeout=10.0)).data

    await until(ticks, what="the guest's first tick", timeout_s=_BOOT_S)


class _Mover:
    """Moves both guests to and fro."""

    def __init__(self, client: Client, twin: Twin) -> None:
        self._client = client
        self._twin = twin
        self._source, self._destination = _HOSTS

    async def round(self, times: _Times, *, bandwidth_mib_s: int) -> None:
        """Leeward's guest one way, its twin over unix sockets; then both back, the twin over TCP."""
        for bare, pairs in ((self._twin.migrate_by_unix, times.unix), (self._twin.migrate_by_tcp, times.tcp)):
            ours = await self._by_leeward(times, bandwidth_mib_s=bandwidth_mib_s)
            theirs = await bare(self._source, self._destination, bandwidth_mib_s=bandwidth_mib_s)
            pairs.append(_Pair(ours, theirs))
            self._source, self._destination = self._destination, self._source

    async def _by_leeward(self, times: _Times, *, bandwidth_mib_s: int) -> float:
        request = instance_service_pb2.LiveMigrateInstanceRequest(
            name=_NAME, node=f"nodes/{self._destination}", max_bandwidth_mib_per_second=bandwidth_mib_s
        )
        began = time.perf_counter()
        operation = await self._client.instances.LiveMigrateInstance(request, timeout=10.0)
        ended = await self._client.wait(operation, timeout_s=_MIGRATE_S)
        took_s = time.perf_counter() - began
        metadata = metadata_of(ended)
        steps = {step.step: step.duration.ToMilliseconds() / 1000 for step in metadata.steps}
        steps["elapsed"] = metadata.migration.elapsed.ToMilliseconds() / 1000
        times.steps.append(steps)
        return took_s
