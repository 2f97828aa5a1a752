"""The control plane that is measured: one real etcd, two real controllers, 100 simulated hosts, mutual TLS everywhere.

etcd, each controller and the hosts are processes of their own on loopback; they die with this one.
"""

import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.layout import ADMIN, CONTROLLERS, Layout
from leeward.client import Client, connect
from leeward.clock import SystemClock
from leeward.errors import StoreUnavailable, Unavailable
from leeward.identity import Role
from leeward.pki import CertificateAuthority, init_ca
from leeward.store.etcd import EtcdStore
from leeward.tls import TlsMaterial
from leeward.v1 import flavor_service_pb2, instance_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DISK_FORMAT_RAW
from leeward.v1.instance_pb2 import Instance
from leeward_lab.hosts.processes import Spawned, spawn
from leeward_lab.simulated.cluster import node_names

HOSTS = 100
PARENT = "projects/default"
FLAVOR = "flavors/bench"
IMAGE = f"{PARENT}/images/bench"

_PROGRAMS = Path(sys.executable).parent
_READY_S = 90.0
_LAUNCH_S = 60.0
_PIPE_LIMIT_BYTES = 16 * 2**20


class Plane:
    """The running control plane. Make it with `control_plane`."""

    def __init__(self, layout: Layout, *, parts: dict[str, Spawned], hosts: Process, clients: list[Client]) -> None:
        self.layout = layout
        self.clients = clients
        self._parts = parts
        self._hosts = hosts
        self._launched = 0

    @property
    def client(self) -> Client:
        """An operator's client that prefers the first controller."""
        return self.clients[0]

    def pid(self, part: str) -> int:
        """The process of `etcd`, a controller by its name, or `hosts`."""
        return self._hosts.pid if part == "hosts" else self._parts[part].process.pid

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that `pid` knows."""
        return (*self._parts, "hosts")

    def tls(self) -> TlsMaterial:
        """An operator's certificate."""
        return TlsMaterial.load(self.layout.certificate_directory(Role.ADMIN, ADMIN))

    @asynccontextmanager
    async def store(self) -> AsyncIterator[EtcdStore]:
        """etcd itself, to look at what no API tells."""
        store = EtcdStore([self.layout.etcd_endpoint], tls=self.layout.etcd_tls(self.tls()), clock=SystemClock())
        try:
            yield store
        finally:
            await store.close()

    async def ask_hosts(self, command: str, *, timeout_s: float = 30.0) -> Any:
        """Have the hosts' process do something, and its answer."""
        assert self._hosts.stdin is not None
        assert self._hosts.stdout is not None
        async with asyncio.timeout(timeout_s):
            self._hosts.stdin.write(f"{command}\n".encode())
            return json.loads(await self._hosts.stdout.readline())

    async def launch(
        self, name: str, *, client: Client, node: str = "", accepted: Callable[[], None] | None = None
    ) -> None:
        """Launch one instance and wait until it is ACTIVE; `accepted` is called when the API has answered."""
        request = instance_service_pb2.CreateInstanceRequest(
            parent=PARENT, instance_id=name, instance=Instance(flavor=FLAVOR, image=IMAGE), node=node
        )
        operation = await client.instances.CreateInstance(request, timeout=_LAUNCH_S)
        if accepted is not None:
            accepted()
        await client.wait(operation, timeout_s=_LAUNCH_S)
        self._launched += 1

    async def populate(self, total: int, *, concurrency: int = 32) -> None:
        """Launch more until at least `total` have been launched in all."""
        gate = asyncio.Semaphore(concurrency)

        async def launch(number: int) -> None:
            async with gate:
                await self.launch(f"more-{number:04}", client=self.clients[number % len(self.clients)])

        async with asyncio.TaskGroup() as group:
            for number in range(self._launched, total):
                group.create_task(launch(number))


@asynccontextmanager
async def control_plane(directory: Path, *, hosts: int = HOSTS) -> AsyncIterator[Plane]:
    """A control plane for the length of a block, with a flavor and an image; nothing of it runs afterwards."""
    network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
    layout = Layout(str(directory), network, hosts)
    await asyncio.to_thread(_issue_certificates, layout)
    async with AsyncExitStack() as stack:
        parts = {"etcd": await _start(stack, layout, "etcd", _etcd(layout))}
        await _until_etcd(layout)
        for name in CONTROLLERS:
            parts[name] = await _start(stack, layout, name, _controller(layout, name))
        simulated = await _start_hosts(stack, layout)
        plane = Plane(layout, parts=parts, hosts=simulated, clients=[])
        for turn in range(len(CONTROLLERS)):
            endpoints = layout.endpoints[turn:] + layout.endpoints[:turn]
            plane.clients.append(await stack.enter_async_context(connect(endpoints, tls=plane.tls())))
        await _until_ready(plane)
        await _stock(plane, directory)
        yield plane


def _issue_certificates(layout: Layout) -> None:
    ca = init_ca(Path(layout.directory) / "pki")
    _issue(ca, Role.ADMIN, ADMIN)
    _issue(ca, Role.ETCD, "etcd-1", layout.etcd_address)
    for name in CONTROLLERS:
        _issue(ca, Role.CONTROLLER, name, layout.controller_address(name).partition(":")[0])
    for name in node_names(layout.hosts):
        _issue(ca, Role.AGENT, name, layout.agent_address(name).partition(":")[0])


def _issue(ca: CertificateAuthority, role: Role, name: str, *sans: str) -> None:
    ca.write(ca.issue(role, name, sans=(name, *sans) if sans else ()))


async def _start(stack: AsyncExitStack, layout: Layout, name: str, command: list[str]) -> Spawned:
    started = spawn(command, name=name, log=Path(layout.directory) / "log" / f"{name}.log")
    stack.push_async_callback(started.process.stop, grace_s=3.0)
    return started


def _etcd(layout: Layout) -> list[str]:
    certificates = layout.certificate_directory(Role.ETCD, "etcd-1")
    options = {
        "name": "etcd-1",
        "data-dir": f"{layout.directory}/etcd",
        "listen-client-urls": f"https://{layout.etcd_endpoint}",
        "advertise-client-urls": f"https://{layout.etcd_endpoint}",
        "listen-peer-urls": f"http://{layout.etcd_peer}",
        "initial-advertise-peer-urls": f"http://{layout.etcd_peer}",
        "initial-cluster": f"etcd-1=http://{layout.etcd_peer}",
        "trusted-ca-file": certificates / "ca.pem",
        "cert-file": certificates / "cert.pem",
        "key-file": certificates / "key.pem",
        "client-cert-auth": "true",
        "enable-grpc-gateway": "false",
        "experimental-watch-progress-notify-interval": "5s",
        "logger": "zap",
        "log-level": "warn",
    }
    return ["etcd", *(f"--{key}={value}" for key, value in options.items())]


def _controller(layout: Layout, name: str) -> list[str]:
    address = layout.controller_address(name)
    return [
        str(_PROGRAMS / "leeward-controller"),
        f"--listen={address}",
        f"--advertise={address}",
        f"--tls-directory={layout.certificate_directory(Role.CONTROLLER, name)}",
        f"--etcd-endpoints={layout.etcd_endpoint}",
        "--log-level=warning",
    ]


async def _start_hosts(stack: AsyncExitStack, layout: Layout) -> Process:
    log = stack.enter_context((Path(layout.directory) / "log/hosts.log").open("ab"))
    command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "bench.hosts", str(layout.save())]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True, limit=_PIPE_LIMIT_BYTES
    )
    stack.push_async_callback(_end, process)
    assert process.stdout is not None
    async with asyncio.timeout(_READY_S):
        if not await process.stdout.readline():
            raise StoreUnavailable(f"the simulated hosts did not start; see {log.name}")
    return process


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _until_etcd(layout: Layout) -> None:
    tls = TlsMaterial.load(layout.certificate_directory(Role.ADMIN, ADMIN))
    store = EtcdStore([layout.etcd_endpoint], tls=layout.etcd_tls(tls), clock=SystemClock())
    try:
        await _patiently(lambda: store.get("/nothing"), within_s=30.0)
    finally:
        await store.close()


async def _until_ready(plane: Plane) -> None:
    async def check() -> None:
        for client in plane.clients:
            listing = await client.list_nodes()
            armed = sum(1 for node in listing.items if node.guard_armed)
            if armed < plane.layout.hosts:
                raise StoreUnavailable(f"{armed} of {plane.layout.hosts} hosts are ready")

    await _patiently(check, within_s=_READY_S, pause_s=0.5)


async def _patiently(act: Callable[[], Awaitable[object]], *, within_s: float, pause_s: float = 0.1) -> None:
    """Try until it works. Raises TimeoutError with what was last in the way."""
    last = "it was never tried"
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    await act()
                    return
                except Unavailable as error:
                    last = error.message
                await asyncio.sleep(pause_s)
    except TimeoutError:
        raise TimeoutError(f"not ready within {within_s:g} s: {last}") from None


async def _stock(plane: Plane, directory: Path) -> None:
    path = directory / "image.raw"
    path.write_bytes(bytes(2**20))
    flavor = Flavor(vcpus=1, memory_mib=512, disk_gib=1)
    request = flavor_service_pb2.CreateFlavorRequest(flavor_id="bench", flavor=flavor)
    await plane.client.flavors.CreateFlavor(request, timeout=10.0)
    await plane.client.upload_image(parent=PARENT, image_id="bench", path=path, format=DISK_FORMAT_RAW)
