"""One host of a cluster: powered on and off, cut off and healed, with programs running inside it."""

import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from leeward_lab.guest.commands import LabError
from leeward_lab.hosts import gateway, libvirtd, network
from leeward_lab.hosts.namespaces import Namespaces, Setup, new_boot_id, set_up, start_namespaces
from leeward_lab.hosts.network import Network
from leeward_lab.hosts.processes import Completed, ProcessRef, Spawned, run
from leeward_lab.hosts.state import HostState, ProcessState
from leeward_lab.hosts.waiting import until

LIBVIRTD = "libvirtd"
_GATEWAY = "gateway"
_GATEWAY_TIMEOUT_S = 10.0
# A hardware address that no one has: packets to it are lost without an error, as in a partitioned network.
_NOWHERE = "02:00:00:00:00:fe"


class Host:
    """A host made of namespaces. Made by `Cluster.add_host`; its directories outlive its being powered off.

    Not like a real host: the page cache is the machine's, so what was written but not flushed survives a power-off.
    """

    def __init__(
        self, state: HostState, *, directory: Path, pool: Path, names: Path, net: Network,
        dies_with_owner: bool, save: Callable[[], None],
    ) -> None:  # fmt: skip
        self.name = state.name
        self.address = net.address(state.index)
        self.directory = directory
        self.link = net.link(state.index)
        self._state = state
        self._pool = pool
        self._names = names
        self._net = net
        self._dies_with_owner = dies_with_owner
        self._save = save

    @property
    def libvirt_socket(self) -> Path:
        """The daemon's socket, as seen from the machine and from every other host of the cluster."""
        return self.directory / "run/libvirt/libvirt-sock"

    @property
    def boot_id(self) -> str:
        """The boot id that programs inside read from /proc; another one after each `power_on`."""
        return (self.directory / "boot_id").read_text().strip()

    @property
    def running(self) -> bool:
        """True while it is powered on."""
        return self._state.pid1 is not None and self._state.pid1.alive()

    async def power_on(self) -> None:
        """Boot it: new namespaces, empty /run, new boot id, same disks. `LabError` when it runs already or fails."""
        if self.running:
            raise LabError(f"{self.name} is powered on already")
        self._prepare_directories()
        namespaces = await start_namespaces(
            log=self.directory / "log/namespaces.log", dies_with_owner=self._dies_with_owner
        )
        self._state.pid1, self._state.outside = namespaces.pid1, namespaces.outside
        self._state.processes.clear()
        self._save()
        # The kernel removes the cable of a dead host's namespace a moment after its last process.
        await network.remove_link(self.link)
        await network.plug_in(self._net, self._state.index, pid=namespaces.pid1.pid)
        await set_up(namespaces, Setup(hostname=self.name, address=self.address, binds=self._binds()))
        if self._state.detachable_pool:
            await self._start_gateway()

    async def start(self) -> None:
        """Boot it, and start libvirt when it is a hypervisor host."""
        await self.power_on()
        if self._state.libvirt:
            await self.start_libvirtd()

    async def power_off(self) -> None:
        """Cut the power: everything inside dies at once, and nothing inside can say good-bye on the network."""
        namespaces = self._namespaces()
        # The kernel closes the sockets of the killed; with the cable cut first, no peer sees that.
        await self.partition()
        await namespaces.power_off()
        self._state.pid1 = self._state.outside = None
        self._state.processes.clear()
        self._save()

    async def partition(self) -> None:
        """Cut its cable. Programs and guests run on; storage stays reachable."""
        await network.set_link(self.link, up=False)

    async def heal(self) -> None:
        """Connect its cable again."""
        await network.set_link(self.link, up=True)

    async def partition_from(self, address: str) -> None:
        """Lose, silently, everything that this host sends to one address. What that address sends still arrives."""
        await self.run(["ip", "neighbour", "replace", address, "lladdr", _NOWHERE, "nud", "permanent", "dev", "eth0"])

    async def heal_from(self, address: str) -> None:
        """Undo `partition_from`."""
        await self.run(["ip", "neighbour", "delete", address, "dev", "eth0"])

    async def detach_storage(self, *, hang: bool = False) -> None:
        """Take the shared pool from this host alone: its I/O there fails with EIO or, with `hang`, waits for ever.

        The host must have been added with `detachable_pool`. Returns when it is so. Not like a real loss: what the
        host had written without flushing is in the machine's page cache, and so neither lost nor late.
        """
        self._gateway().send(signal.SIGSTOP if hang else signal.SIGUSR1)
        if not hang:
            await self._until_pool(reachable=False)

    async def attach_storage(self) -> None:
        """Give it back: files opened before the loss work again, and what hung goes on."""
        self._gateway().send(signal.SIGCONT)
        self._gateway().send(signal.SIGUSR2)
        await self._until_pool(reachable=True)

    async def run(
        self, command: Sequence[str], *, timeout_s: float = 30.0, stdin: bytes = b"", check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:  # fmt: skip
        """Run a command inside to its end. `LabError` when it takes too long and, with `check`, when it fails."""
        # Killing nsenter alone would leave the command running.
        inside = self._namespaces().enter(["setpriv", "--pdeathsig", "KILL", "--", *command])
        return await run(inside, timeout_s=timeout_s, stdin=stdin, check=check, env=env)

    async def spawn(self, command: Sequence[str], *, name: str, env: Mapping[str, str] | None = None) -> Spawned:
        """Start a long-running program inside, its output in `log/NAME.log`. It ends with the host, if not before.

        The pid is the one seen from the machine. `LabError` when a program of that name runs already.
        """
        known = self._state.processes.get(name)
        if known is not None and known.process.alive():
            raise LabError(f"{name} is running already on {self.name}")
        log = self.directory / f"log/{name}.log"
        started = await self._namespaces().spawn(command, name=name, log=log, env=env or {})
        self._state.processes[name] = ProcessState(process=started.process, log=str(log))
        self._save()
        return started

    def spawned(self, name: str) -> Spawned:
        """The program started under this name, whoever started it; `LabError` when there was none since power-on."""
        known = self._state.processes.get(name)
        if known is None:
            raise LabError(f"nothing called {name} was started on {self.name}")
        return Spawned(name=name, process=known.process, log=Path(known.log))

    async def start_libvirtd(self, *, timeout_s: float = 30.0) -> Spawned:
        """Start the host's libvirt daemon and wait until it answers. `LabError`, with its log, when it does not."""
        if not self._state.libvirt:
            raise LabError(f"{self.name} was added without libvirt")
        # One that was killed left its socket behind.
        self.libvirt_socket.unlink(missing_ok=True)
        daemon = await self.spawn(["libvirtd", "--listen"], name=LIBVIRTD)

        async def listening() -> bool:
            if not daemon.process.alive():
                raise LabError(f"libvirtd on {self.name} ended:\n{daemon.tail()}")
            return self.libvirt_socket.exists()

        await until(listening, what=f"libvirtd on {self.name} coming up", timeout_s=timeout_s)
        # It listens before its drivers are ready, and answers when they are.
        await self.run(["virsh", "-c", "qemu:///system", "uri"], timeout_s=timeout_s)
        return daemon

    async def signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a program started by `spawn`; False when it is gone."""
        return self.spawned(name).process.send(number)

    def _gateway(self) -> ProcessRef:
        if not self._state.detachable_pool:
            raise LabError(f"{self.name} was added without a detachable pool")
        return self.spawned(_GATEWAY).process

    async def _start_gateway(self) -> None:
        started = await self.spawn([sys.executable, "-m", "leeward_lab.hosts.gateway", str(self._pool)], name=_GATEWAY)

        async def mounted() -> bool:
            if not started.process.alive():
                raise LabError(f"the pool's gateway on {self.name} did not start:\n{started.tail()}")
            command = ["findmnt", "--types", gateway.FILE_SYSTEM, "--mountpoint", str(self._pool)]
            return (await self.run(command, check=False)).returncode == 0

        await until(mounted, what=f"mounting the pool's gateway on {self.name}", timeout_s=_GATEWAY_TIMEOUT_S)

    async def _until_pool(self, *, reachable: bool) -> None:
        async def as_wanted() -> bool:
            return ((await self.run(["stat", str(self._pool)], check=False)).returncode == 0) == reachable

        what = f"the pool becoming {'' if reachable else 'un'}reachable on {self.name}"
        await until(as_wanted, what=what, timeout_s=_GATEWAY_TIMEOUT_S)

    def _namespaces(self) -> Namespaces:
        if self._state.pid1 is None or self._state.outside is None or not self._state.pid1.alive():
            raise LabError(f"{self.name} is powered off")
        return Namespaces(pid1=self._state.pid1, outside=self._state.outside)

    def _prepare_directories(self) -> None:
        shutil.rmtree(self.directory / "run", ignore_errors=True)
        for name in ("run/lock", "log", "local"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "boot_id").write_text(new_boot_id())
        (self.directory / "resolv.conf").write_text("")
        if self._state.libvirt:
            libvirtd.write_configuration(
                self.directory, host_uuid=self._state.host_uuid, hostname=self.name, address=self.address
            )

    def _binds(self) -> dict[str, Path]:
        binds = {
            "/run": self.directory / "run",
            "/proc/sys/kernel/random/boot_id": self.directory / "boot_id",
            # Without a name server a look-up fails at once instead of waiting for one that cannot be reached.
            "/etc/resolv.conf": self.directory / "resolv.conf",
            "/etc/hosts": self._names,
        }
        if self._state.libvirt:
            binds |= libvirtd.binds(self.directory)
        return binds
