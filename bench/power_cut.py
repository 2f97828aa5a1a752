"""A real host with 30 real guests loses its power: what of the time until all run again is ours, and what is QEMU's."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import Result
from bench.twin import as_twin, virsh
from leeward.client import Client
from leeward.v1 import flavor_service_pb2, instance_service_pb2, node_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DISK_FORMAT_QCOW2
from leeward.v1.instance_pb2 import Instance
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.hosts.waiting import until
from leeward_lab.real.cluster import RealCluster, running
from leeward_lab.real.layout import Shape

GUESTS = 30
MEMORY_MIB = 128
OWN_WORK_S = 3.0
_VICTIM, _OTHERS = "host-a", ("host-b", "host-c")
_PARENT = "projects/default"
_AT_ONCE = 4
_BOOT_S = 400.0
_RESTART_S = 180.0


@dataclass(slots=True)
class _Seen:
    """When an instance was told to be ACTIVE elsewhere, by its name, on the wall clock that all hosts share here."""

    times_s: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


async def measure(directory: Path) -> Result:
    """Fill a host, cut its power, watch; then have libvirt alone start as many of the same guests on the same hosts."""
    result = Result(
        "power-cut",
        f"{GUESTS} real guests of {MEMORY_MIB} MiB (QEMU, TCG) on one of three lab hosts, whose power is cut. All are "
        "ACTIVE again on the two others, by a client's watch. Until the proof we wait on purpose: TTL 5 s, what the "
        "guard may need 1 s, margin 0.5 s, counted from the last heartbeat. After it, QEMU's own part is what libvirt "
        "alone needs to start as many guests with the same devices at once on the same two hosts, afterwards in the "
        "same run; the rest is our own work.",
    )
    config = await asyncio.to_thread(_write_config, directory.with_suffix(".toml"))
    async with (
        running(directory, "bench", shape=Shape(hosts=3), controller_config=config) as cluster,
        cluster.client() as client,
    ):
        await cluster.until_ready(client)
        image = await asyncio.to_thread(build_guest_image, directory / "tiny.qcow2", cache_dir=default_cache_dir())
        names = await _fill(client, image)
        async with _watching(client, names) as seen:
            off_s = time.time()
            await cluster.host(_VICTIM).power_off()
            async with asyncio.timeout(_RESTART_S):
                while len(seen.times_s) < len(names):
                    seen.changed.clear()
                    await seen.changed.wait()
        proof_s = await _proof_s(client)
        await _until_ticking(client, names)
        bare_s = await _start_bare(cluster, client, names, directory=cluster.lab.pool / "bench", image=image)
    first_s, last_s = min(seen.times_s.values()), max(seen.times_s.values())
    result.add("power-off to proof (waiting)", proof_s - off_s, "s")
    result.add("power-off to first running", first_s - off_s, "s")
    result.add("power-off to all running", last_s - off_s, "s")
    result.add("proof to all running", last_s - proof_s, "s")
    result.add("libvirt alone, all started", bare_s, "s")
    result.add("our own work", last_s - proof_s - bare_s, "s", at_most=OWN_WORK_S)
    return result


def _write_config(path: Path) -> Path:
    """A lab host shows the whole machine's processors, which are fewer than the guests."""
    path.write_text("vcpu_overcommit = 64\n")
    return path


async def _fill(client: Client, image: Path) -> list[str]:
    await client.upload_image(parent=_PARENT, image_id="tiny", path=image, format=DISK_FORMAT_QCOW2)
    flavor = Flavor(vcpus=1, memory_mib=MEMORY_MIB, disk_gib=1)
    await client.flavors.CreateFlavor(
        flavor_service_pb2.CreateFlavorRequest(flavor_id="tiny", flavor=flavor), timeout=10.0
    )
    gate = asyncio.Semaphore(_AT_ONCE)

    async def launch(number: int) -> str:
        name = f"bench-{number:02}"
        wanted = Instance(flavor="flavors/tiny", image=f"{_PARENT}/images/tiny")
        request = instance_service_pb2.CreateInstanceRequest(
            parent=_PARENT, instance_id=name, instance=wanted, node=f"nodes/{_VICTIM}"
        )
        async with gate:
            begun = await client.instances.CreateInstance(request, timeout=30.0)
            await client.wait(begun, timeout_s=_BOOT_S)
        return f"{_PARENT}/instances/{name}"

    names = list(await asyncio.gather(*(launch(number) for number in range(GUESTS))))
    await _until_ticking(client, names)
    return names


async def _until_ticking(client: Client, names: list[str]) -> None:
    """Wait until each guest has come up, so that what follows does not compete with booting."""
    for name in names:
        request = instance_service_pb2.GetConsoleLogRequest(name=name)

        async def ticks(request: instance_service_pb2.GetConsoleLogRequest = request) -> bool:
            return b"tick" in (await client.instances.GetConsoleLog(request, timeout=30.0)).data

        await until(ticks, what=f"the first tick of {name}", timeout_s=_BOOT_S)


@asynccontextmanager
async def _watching(client: Client, names: list[str]) -> AsyncIterator[_Seen]:
    seen = _Seen()

    async def watch() -> None:
        async with aclosing(client.watch_instances(_PARENT)) as changes:
            async for change in changes:
                instance = change.resource
                if instance is None or instance.name not in names or instance.node in ("", f"nodes/{_VICTIM}"):
                    continue
                if instance.state == Instance.STATE_ACTIVE and not instance.current_operation:
                    seen.times_s.setdefault(instance.name, time.time())
                    seen.changed.set()

    task = asyncio.ensure_future(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _proof_s(client: Client) -> float:
    request = node_service_pb2.GetNodeRequest(name=f"nodes/{_VICTIM}")
    proof = (await client.nodes.GetNode(request, timeout=10.0)).fence_proof
    return float(proof.proof_time.ToNanoseconds() / 1e9)


async def _start_bare(cluster: RealCluster, client: Client, names: list[str], *, directory: Path, image: Path) -> float:
    """Define twins of all guests where they run now, then start all at once; the seconds until the last has started."""
    await asyncio.to_thread(directory.mkdir)
    twins: list[tuple[str, str]] = []
    for name in names:
        request = instance_service_pb2.GetInstanceRequest(name=name)
        instance = await client.instances.GetInstance(request, timeout=10.0)
        host, twin = instance.node.removeprefix("nodes/"), f"twin-{instance.uid}"
        there = cluster.host(host)
        disk, console = directory / f"{twin}.qcow2", directory / f"{twin}.log"
        await there.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image), str(disk), "1G"])
        described = (await virsh(there, "dumpxml", "--migratable", "--inactive", f"leeward-{instance.uid}")).stdout
        definition = directory / f"{twin}.xml"
        definition.write_text(as_twin(described, name=twin, disk=disk, console=console))
        await virsh(there, "define", str(definition))
        twins.append((host, twin))
    began_s = time.monotonic()
    await asyncio.gather(*(virsh(cluster.host(host), "start", twin) for host, twin in twins))
    return time.monotonic() - began_s
