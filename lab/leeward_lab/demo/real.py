"""The story's stage on real hosts: libvirt and QEMU, etcd, and mutual TLS everywhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from leeward.client import Client
from leeward_lab.demo.stage import DiskRecord
from leeward_lab.guest.record import read_guest_record
from leeward_lab.guest_image import build_guest_image, default_cache_dir
from leeward_lab.real.cluster import RealCluster, running

_LIST_COMMANDS = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null"


class RealStage:
    """A `Stage` over a real cluster."""

    image_format = "qcow2"

    def __init__(self, cluster: RealCluster, client: Client, *, image: Path, hypervisor: str) -> None:
        self.client = client
        self.image = image
        self.hypervisor = hypervisor
        self._cluster = cluster

    async def cut_power(self, host: str) -> None:
        """Kill the host's pid 1, and everything in it at once."""
        await self._cluster.host(host).power_off()

    async def processes_of(self, uid: str) -> list[str]:
        """The hosts with a QEMU process that has the guest's disk in its arguments."""
        found = []
        for name in self._cluster.shape.host_names:
            host = self._cluster.host(name)
            if host.running:
                listed = await host.run(["sh", "-c", _LIST_COMMANDS], check=False)
                commands = listed.stdout.splitlines()
                found += [name for command in commands if "qemu-system" in command and f"/{uid}/" in command]
        return found

    async def disk_record(self, uid: str) -> DiskRecord:
        """What the guest wrote to its data partition, read beside the running QEMU."""
        disk = self._cluster.lab.pool / "instances" / uid / "root.qcow2"
        record = await asyncio.to_thread(read_guest_record, disk)
        return DiskRecord(record.boots, record.lines, record.missing())


@asynccontextmanager
async def real_stage(directory: Path) -> AsyncIterator[RealStage]:
    """Build the image, start the cluster, and take all of it down in the end."""
    image = await asyncio.to_thread(build_guest_image, directory / "tiny.qcow2", cache_dir=default_cache_dir())
    async with running(directory / "cluster", "demo") as cluster, cluster.client() as client:
        await cluster.until_ready(client)
        nodes = (await client.list_nodes()).items
        yield RealStage(cluster, client, image=image, hypervisor=nodes[0].hypervisor)
