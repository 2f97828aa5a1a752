"""The simulated hosts, in a process of their own: `python -m bench.hosts`, started by `bench.plane`.

Each host is the real agent core behind the real agent server over mutual TLS, on a loopback address of its own, with a
simulated hypervisor, a pool in memory that all share, and heartbeats into the real etcd.

It reads commands on standard input and answers each with a line of JSON: `off HOST` cuts a host's power and tells when,
on the monotonic clock that all processes share; `running` tells which guests run where; the end of input ends it.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.layout import POOL_CAPACITY_GIB, Layout
from leeward import event_loop
from leeward.agent.v1 import agent_pb2
from leeward.clock import RandomIds, SystemClock
from leeward.errors import PermissionDenied
from leeward.identity import Role
from leeward.logs import set_up_logs
from leeward.store.etcd import EtcdStore
from leeward.tls import TlsMaterial
from leeward_agent.server import AgentServer
from leeward_agent.tunnel_server import TunnelServer
from leeward_lab.simulated.cluster import SimulatedCluster
from leeward_lab.simulated.network import STORE
from leeward_lab.simulated.stores import LinkedStore, StoreHook
from leeward_lab.simulated.stores import no_hook as no_store_hook

_NOWHERE = Path("/nonexistent")
_AT_ONCE = 10


async def _no_delay() -> None:
    return


async def _admit_nobody(_header: agent_pb2.TunnelHeader) -> None:
    raise PermissionDenied("simulated hosts take no migrations through tunnels")


class EtcdCluster(SimulatedCluster):
    """Simulated hosts whose heartbeats go to a real etcd, and whose agents are served over gRPC."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(
            clock=SystemClock(),
            ids=RandomIds(),
            rng=random.SystemRandom(),
            nodes=layout.hosts,
            node_vcpus=512,
            node_memory_mib=1024 * 1024,
        )
        self.layout = layout
        self.pool.capacity_gib = POOL_CAPACITY_GIB
        self._stores: list[EtcdStore] = []
        self._servers: dict[str, AgentServer] = {}

    def linked_store(self, name: str, *, hook: StoreHook = no_store_hook) -> LinkedStore:
        """The real store, over connections of this host's own."""
        tls = self._tls(name)
        store = EtcdStore([self.layout.etcd_endpoint], tls=self.layout.etcd_tls(tls), clock=self.clock)
        self._stores.append(store)
        return LinkedStore(
            store,
            reaches=partial(self.network.reaches, name, STORE),
            linked=partial(self.network.until_healed, name, STORE),
            delay=_no_delay,
            hook=hook,
        )

    async def start_nodes(self) -> None:
        """Power on every host and serve its agent."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def start(name: str) -> None:
            async with gate:
                node = self.nodes[name]
                node.address = self.layout.agent_address(name)
                await node.power_on()
                await self._serve(name)

        await asyncio.gather(*(start(name) for name in self.nodes))

    async def _serve(self, name: str) -> None:
        node = self.nodes[name]
        assert node.agent is not None
        tunnels = TunnelServer(
            libvirt_socket=_NOWHERE,
            socket_directory=_NOWHERE,
            admit=_admit_nobody,
            check_caller=lambda _: None,
        )
        server = AgentServer(node.agent, tunnels, addresses=[node.address], tls=self._tls(name), ids=self.ids)
        await server.start()
        self._servers[name] = server

    def _tls(self, name: str) -> TlsMaterial:
        return TlsMaterial.load(self.layout.certificate_directory(Role.AGENT, name))

    async def cut_power(self, name: str) -> float:
        """Cut a host's power; answers when."""
        at_s = time.monotonic()
        await self.nodes[name].power_off()
        await self._servers.pop(name).stop(0)
        return at_s

    def running(self) -> dict[str, list[str]]:
        """The hosts on which each guest has the means to write its disk."""
        found: dict[str, list[str]] = {}
        for host in self.world.hosts.values():
            for uid, guest in host.guests.items():
                if guest.may_write:
                    found.setdefault(uid, []).append(host.node)
        return found

    async def stop(self) -> None:
        """End everything."""
        await asyncio.gather(*(server.stop(0) for server in self._servers.values()))
        await super().stop()
        await asyncio.gather(*(store.close() for store in self._stores))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _obey(cluster: EtcdCluster, commands: asyncio.StreamReader) -> None:
    while line := (await commands.readline()).decode().strip():
        match line.split():
            case ["off", host]:
                _say({"off": host, "at_s": await cluster.cut_power(host)})
            case ["running"]:
                _say({"running": cluster.running()})
            case _:
                _say({"error": f"not understood: {line}"})


async def _run(layout: Layout) -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    cluster = EtcdCluster(layout)
    try:
        await cluster.start_nodes()
        _say({"ready": len(cluster.nodes)})
        obeying = asyncio.ensure_future(_obey(cluster, commands))
        while not obeying.done():
            await asyncio.wait({obeying}, timeout=1.0)
            cluster.check_parts()
        obeying.result()
    finally:
        await cluster.stop()


def main() -> None:
    """Run the hosts of the layout in the file that is given, until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.hosts", description=__doc__)
    parser.add_argument("layout", type=Path)
    layout = Layout.load(parser.parse_args().layout)
    set_up_logs(level="warning")
    with contextlib.suppress(KeyboardInterrupt):
        event_loop.run(_run(layout))


if __name__ == "__main__":
    main()
