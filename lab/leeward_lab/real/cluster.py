"""The real cluster: how its parts are started, and how a test or a demonstration gets at them."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from leeward import keys
from leeward.client import Client, connect
from leeward.clock import RandomIds, SystemClock
from leeward.errors import FailedPrecondition, StoreUnavailable, Unavailable
from leeward.identity import ETCD_SERVER_NAME, Role
from leeward.pki import CertificateAuthority, init_ca
from leeward.store.etcd import EtcdAuth, EtcdTls
from leeward.tls import TlsMaterial
from leeward_agent.storage.directory import DirectoryPool
from leeward_lab.guest.commands import LabError
from leeward_lab.hosts.cluster import Cluster
from leeward_lab.hosts.host import Host
from leeward_lab.real.layout import (
    ADMIN,
    AGENT_PORT,
    CONTROLLER_PORT,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    GUARD_SOCKET,
    Shape,
)

_CONSOLE_LINES = 150
"""Enough for what a kernel says when it panics, and what its next boot says."""
_SHAPE_FILE = "shape.json"
_PROGRAMS = Path(sys.executable).parent


class RealCluster:
    """One real cluster. Make it with `running`, or find one that stays up with `attach`."""

    def __init__(self, lab: Cluster, shape: Shape) -> None:
        self.lab = lab
        self.shape = shape
        self.pki = lab.directory / "pki"
        self.controller_config: Path | None = None

    @classmethod
    async def start(
        cls, directory: Path, name: str, *, shape: Shape | None = None, detached: bool = False, libvirt: bool = True,
        controller_config: Path | None = None,
    ) -> "RealCluster":  # fmt: skip
        """Make and start everything; on failure nothing stays behind. `detached` lets it outlive this process.

        `controller_config` is a TOML file with further settings of the controllers.
        """
        lab = await Cluster.create(directory, name, detached=detached)
        cluster = cls(lab, shape or Shape())
        cluster.controller_config = controller_config
        (lab.directory / _SHAPE_FILE).write_text(json.dumps(asdict(cluster.shape)))
        try:
            await cluster._start(libvirt=libvirt)
        except BaseException:
            await asyncio.shield(lab.destroy())
            raise
        return cluster

    @classmethod
    def attach(cls, directory: Path) -> "RealCluster":
        """The cluster that another process left running in `directory`."""
        lab = Cluster.attach(directory)
        written = json.loads((lab.directory / _SHAPE_FILE).read_text())
        return cls(lab, Shape(**{**written, "detachable_pool": tuple(written["detachable_pool"])}))

    async def destroy(self) -> None:
        """Kill everything and remove the network; files in the directory stay."""
        await asyncio.shield(self.lab.destroy())

    async def _start(self, *, libvirt: bool) -> None:
        for name in (*self.shape.etcd_names, *self.shape.controller_names):
            self.lab.add_host(name, libvirt=False)
        for name in self.shape.host_names:
            self.lab.add_host(name, libvirt=libvirt, detachable_pool=name in self.shape.detachable_pool)
        await asyncio.to_thread(self._issue_certificates)
        for root in (self.lab.pool, *(self.local_pool(name) for name in self.shape.host_names)):
            root.mkdir(parents=True, exist_ok=True)
            await DirectoryPool.create(root, RandomIds())
        await asyncio.gather(*(host.start() for host in self.lab.hosts.values()))
        await asyncio.gather(*(self.start_etcd(name) for name in self.shape.etcd_names))
        await self._set_up_rights()
        await asyncio.gather(*(self.start_controller(name) for name in self.shape.controller_names))
        await asyncio.gather(*(self.start_host_services(name) for name in self.shape.host_names))

    def _issue_certificates(self) -> None:
        ca = init_ca(self.pki)
        self._issue(ca, Role.ADMIN, ADMIN)
        self._issue(ca, Role.CLIENT, "alice")
        for name in self.shape.etcd_names:
            self._issue(ca, Role.ETCD, name, self.lab.hosts[name].address)
        for name in self.shape.controller_names:
            self._issue(ca, Role.CONTROLLER, name, self.lab.hosts[name].address)
        for name in self.shape.host_names:
            self._issue(ca, Role.AGENT, name, self.lab.hosts[name].address)

    def _issue(self, ca: CertificateAuthority, role: Role, name: str, *sans: str) -> None:
        ca.write(ca.issue(role, name, sans=(name, *sans) if sans else ()))

    def certificate_directory(self, role: Role, name: str) -> Path:
        """Where that part's key, certificate and CA lie."""
        return self.pki / f"{role}-{name}"

    def local_pool(self, name: str) -> Path:
        """The directory of the pool that this host has alone."""
        return self.lab.hosts[name].directory / "local-pool"

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """host:port of each member."""
        return tuple(f"{self.lab.hosts[name].address}:{ETCD_CLIENT_PORT}" for name in self.shape.etcd_names)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of each controller's public API."""
        return tuple(f"{self.lab.hosts[name].address}:{CONTROLLER_PORT}" for name in self.shape.controller_names)

    async def start_etcd(self, name: str) -> None:
        """Start a member, with mutual TLS towards clients and peers; its data survives a restart."""
        host = self.lab.hosts[name]
        certificates = self.certificate_directory(Role.ETCD, name)
        files = {"ca": certificates / "ca.pem", "cert": certificates / "cert.pem", "key": certificates / "key.pem"}
        peers = ",".join(f"{n}=https://{self.lab.hosts[n].address}:{ETCD_PEER_PORT}" for n in self.shape.etcd_names)
        options = {
            "name": name,
            "data-dir": host.directory / "etcd",
            "listen-client-urls": f"https://{host.address}:{ETCD_CLIENT_PORT}",
            "advertise-client-urls": f"https://{host.address}:{ETCD_CLIENT_PORT}",
            "listen-peer-urls": f"https://{host.address}:{ETCD_PEER_PORT}",
            "initial-advertise-peer-urls": f"https://{host.address}:{ETCD_PEER_PORT}",
            "initial-cluster": peers,
            "trusted-ca-file": files["ca"],
            "cert-file": files["cert"],
            "key-file": files["key"],
            "client-cert-auth": "true",
            "peer-trusted-ca-file": files["ca"],
            "peer-cert-file": files["cert"],
            "peer-key-file": files["key"],
            "peer-client-cert-auth": "true",
            "enable-grpc-gateway": "false",
            "heartbeat-interval": "100",
            "election-timeout": "500",
            "experimental-watch-progress-notify-interval": "5s",
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "1h",
            "logger": "zap",
            "log-level": "warn",
        }
        await host.spawn(["etcd", *(f"--{key}={value}" for key, value in options.items())], name="etcd")

    def etcd_tls(self, tls: TlsMaterial) -> EtcdTls:
        """What shows `tls` to this cluster's etcd."""
        return EtcdTls(tls.ca_pem, tls.cert_pem, tls.key_pem, dict.fromkeys(self.etcd_endpoints, ETCD_SERVER_NAME))

    async def _set_up_rights(self) -> None:
        """Make etcd's users, as `leeward admin init-etcd` does, and enforce that each node writes one key only."""
        admin = TlsMaterial.load(self.certificate_directory(Role.ADMIN, ADMIN))
        auth = EtcdAuth(self.etcd_endpoints, tls=self.etcd_tls(admin), clock=SystemClock())
        controllers = [f"{Role.CONTROLLER}:{name}" for name in self.shape.controller_names]
        try:
            async with asyncio.timeout(30):
                await _patiently(
                    lambda: auth.bootstrap(prefix=keys.ROOT, controllers=controllers, admins=[f"{Role.ADMIN}:{ADMIN}"])
                )
                for name in self.shape.host_names:
                    await auth.add_node_user(f"{Role.AGENT}:{name}", keys.lease(name))
                await auth.enable()
        finally:
            await auth.close()

    async def start_controller(self, name: str) -> None:
        """Start a controller replica."""
        host = self.lab.hosts[name]
        config = [f"--config={self.controller_config}"] if self.controller_config else []
        await host.spawn(
            [
                str(_PROGRAMS / "leeward-controller"),
                *config,
                f"--listen={host.address}:{CONTROLLER_PORT}",
                f"--advertise={host.address}:{CONTROLLER_PORT}",
                f"--tls-directory={self.certificate_directory(Role.CONTROLLER, name)}",
                *(f"--etcd-endpoints={endpoint}" for endpoint in self.etcd_endpoints),
            ],
            name="controller",
        )

    async def start_host_services(self, name: str) -> None:
        """Start guard and agent on a hypervisor host, as its service manager would at boot."""
        await self.start_guard(name)
        await self.start_agent(name)

    async def start_guard(self, name: str) -> None:
        """Start the guard."""
        host = self.lab.hosts[name]
        state = host.directory / "guard"
        state.mkdir(exist_ok=True)
        await host.run(["mkdir", "-p", str(Path(GUARD_SOCKET).parent)])
        await host.spawn(
            [
                str(_PROGRAMS / "leeward-guard"),
                f"--socket={GUARD_SOCKET}",
                f"--state={state / 'state.json'}",
                f"--log={state / 'log.jsonl'}",
            ],
            name="guard",
        )

    async def start_agent(self, name: str) -> None:
        """Start the agent."""
        host = self.lab.hosts[name]
        await host.spawn(
            [
                str(_PROGRAMS / "leeward-agent"),
                f"--node={name}",
                f"--listen={host.address}:{AGENT_PORT}",
                f"--advertise={host.address}:{AGENT_PORT}",
                f"--tls-directory={self.certificate_directory(Role.AGENT, name)}",
                *(f"--etcd-endpoints={endpoint}" for endpoint in self.etcd_endpoints),
                f"--pools={self.lab.pool}",
                f"--pools={self.local_pool(name)}",
                f"--guard-socket={GUARD_SOCKET}",
                f"--state-directory={host.directory / 'agent'}",
                "--socket-directory=/run/leeward/migration",
                f"--console-directory={self.lab.directory / 'console'}",
            ],
            name="agent",
        )

    async def kill(self, name: str, program: str) -> None:
        """SIGKILL one program of a host and wait until it is gone."""
        spawned = self.lab.hosts[name].spawned(program)
        await spawned.process.kill()

    async def signal(self, name: str, program: str, number: signal.Signals) -> None:
        """Send a signal to one program of a host."""
        await self.lab.hosts[name].signal(program, number)

    def host(self, name: str) -> Host:
        """A host by its name."""
        return self.lab.hosts[name]

    def client(self, role: Role = Role.ADMIN, name: str = ADMIN, *, endpoints: Sequence[str] = ()) -> Client:
        """A client of the public API under that identity."""
        tls = TlsMaterial.load(self.certificate_directory(role, name))
        return connect(endpoints or self.endpoints, tls=tls)

    async def until_ready(self, client: Client, *, within_s: float = 60.0) -> None:
        """Wait until every host has registered and its guard is armed. Raises FailedPrecondition with what logs say."""
        try:
            async with asyncio.timeout(within_s):
                await _patiently(lambda: self._check_ready(client))
        except TimeoutError:
            logs = "\n".join(self.log_tails())
            raise FailedPrecondition(f"the cluster was not ready within {within_s:g} s\n{logs}") from None

    async def _check_ready(self, client: Client) -> None:
        listing = await client.list_nodes()
        ready = {node.name.removeprefix("nodes/") for node in listing.items if node.guard_armed}
        missing = set(self.shape.host_names) - ready
        if missing:
            raise StoreUnavailable(f"not ready yet: {', '.join(sorted(missing))}")

    def log_tails(self, lines: int = 8) -> list[str]:
        """The ends of all programs' logs and of all guests' consoles, for a failure's message."""
        tails = []
        for host in self.lab.hosts.values():
            for program in ("etcd", "controller", "guard", "agent"):
                with contextlib.suppress(LabError):
                    tails.append(f"--- {host.name} {program}\n{host.spawned(program).tail(lines)}")
        for console in sorted((self.lab.directory / "console").glob("*.log")):
            told = console.read_text(errors="replace").splitlines()[-_CONSOLE_LINES:]
            tails.append("\n".join([f"--- console of {console.stem}", *told]))
        return tails


async def _patiently(act: Callable[[], Awaitable[None]], *, pause_s: float = 0.1) -> None:
    """Try until it works; the caller bounds it."""
    while True:
        try:
            return await act()
        except Unavailable:
            await asyncio.sleep(pause_s)


@asynccontextmanager
async def running(
    directory: Path, name: str, *, shape: Shape | None = None, controller_config: Path | None = None
) -> AsyncIterator[RealCluster]:
    """A real cluster for the length of a block; nothing of it stays, whatever happens in the block."""
    cluster = await RealCluster.start(directory, name, shape=shape, controller_config=controller_config)
    try:
        yield cluster
    finally:
        await cluster.destroy()
