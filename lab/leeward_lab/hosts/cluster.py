"""A cluster of hosts: made, found again by another process, and cleared away without leaving anything."""

import logging
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from leeward_lab.guest.commands import LabError
from leeward_lab.hosts import network, state
from leeward_lab.hosts.host import Host
from leeward_lab.hosts.network import Network
from leeward_lab.hosts.processes import ProcessRef
from leeward_lab.hosts.state import ClusterState, HostState

_log = logging.getLogger(__name__)

POOL = "pool"
# The mount points that libvirt's directories are bound to must exist, whether or not a package made them.
_MOUNT_POINTS = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")


class Cluster:
    """Hosts on one bridge with one shared pool. An async context manager: on leaving, everything is destroyed.

    Without `detached` the hosts die with the calling thread, even by SIGKILL, and what is left of the network is
    removed by the next `Cluster.create` on the machine. With it, they stay until `destroy`.
    """

    def __init__(self, written: ClusterState) -> None:
        self._state = written
        self.name = written.name
        self.directory = Path(written.directory)
        self.net = Network(cluster_id=written.cluster_id, number=written.subnet)
        self.hosts: dict[str, Host] = {}
        for each in written.hosts:
            self.hosts[each.name] = self._host(each)

    @classmethod
    async def create(cls, directory: Path, name: str, *, detached: bool = False) -> Self:
        """Make the network and the directories of a new cluster, after clearing away abandoned ones.

        `LabError` when `directory` holds a cluster already.
        """
        directory = _new_directory(directory)
        try:
            await sweep()
        except LabError as error:
            # Somebody else's leftovers do not keep this cluster from its own names.
            _log.warning("cannot clear away an abandoned cluster: %s", error.message)
        async with state.machine_lock():
            identity = state.cluster_id(directory, name)
            written = ClusterState(
                name=name,
                cluster_id=identity,
                directory=str(directory),
                subnet=await network.free_number(identity),
                owner=None if detached else ProcessRef.this(),
            )
            cluster = cls(written)
            written.save()
            cluster._write_names()
            await network.create_bridge(cluster.net)
        return cluster

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """The cluster that another process made in `directory`; `LabError` when there is none."""
        return cls(state.load(directory.resolve() / state.STATE_FILE))

    @property
    def pool(self) -> Path:
        """The shared pool: the same path in every host and on the machine."""
        return self.directory / POOL

    @property
    def gateway(self) -> str:
        """The machine's own address on the cluster's network."""
        return self.net.gateway

    def add_host(self, name: str, *, libvirt: bool = True, detachable_pool: bool = False) -> Host:
        """Add a host, still powered off. Without `libvirt` it is a plain one, for a controller or etcd.

        With `detachable_pool` it reaches the pool through a gateway of its own, which `Host.detach_storage` needs.
        """
        if name in self.hosts:
            raise LabError(f"{self.name} has a host {name} already")
        added = HostState(
            name=name,
            index=len(self._state.hosts),
            host_uuid=str(uuid.uuid4()),
            libvirt=libvirt,
            detachable_pool=detachable_pool,
        )
        self._state.hosts.append(added)
        self.hosts[name] = self._host(added)
        self._write_names()
        self._state.save()
        return self.hosts[name]

    async def destroy(self) -> None:
        """Kill every host and remove the network. Files in the directory stay. May be repeated."""
        await _destroy(self._state)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    def _host(self, written: HostState) -> Host:
        return Host(
            written,
            directory=self.directory / "hosts" / written.name,
            pool=self.pool,
            names=self._names_file,
            net=self.net,
            dies_with_owner=self._state.owner is not None,
            save=self._state.save,
        )

    @property
    def _names_file(self) -> Path:
        return self.directory / "hosts.txt"

    def _write_names(self) -> None:
        """Every host's name and address, for /etc/hosts. Written in place: running hosts have this very file."""
        lines = ["127.0.0.1 localhost", f"{self.gateway} outside"]
        lines += [f"{host.address} {host.name}" for host in self.hosts.values()]
        self._names_file.write_text("\n".join(lines) + "\n")


def _new_directory(directory: Path) -> Path:
    directory = directory.resolve()
    if (directory / state.STATE_FILE).exists():
        raise LabError(f"{directory} holds a cluster already; attach to it or destroy it")
    for needed in (directory / POOL, *map(Path, _MOUNT_POINTS)):
        needed.mkdir(parents=True, exist_ok=True)
    return directory


async def sweep(name: str | None = None) -> list[str]:
    """Destroy clusters whose owner is gone and, with `name`, every cluster of that name. Returns all their ids."""
    async with state.machine_lock():
        swept = [each for each in state.registered() if each.abandoned() or each.name == name]
        for each in swept:
            await _destroy(each)
    return [each.cluster_id for each in swept]


async def _destroy(written: ClusterState) -> None:
    """Kill and remove what this process knows of, and what another process that attached has written down since."""
    for current in (written, *(each for each in state.registered() if each.cluster_id == written.cluster_id)):
        await _kill_hosts(current)
    for link in await network.links_of(written.cluster_id):
        await network.remove_link(link)
    written.forget()


async def _kill_hosts(written: ClusterState) -> None:
    for host in written.hosts:
        for process in filter(None, (host.pid1, host.outside)):
            await process.kill()
        host.pid1 = host.outside = None
