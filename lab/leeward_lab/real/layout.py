"""Names, ports and directories of a real lab cluster."""

from dataclasses import dataclass

ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
CONTROLLER_PORT = 7443
AGENT_PORT = 7444

GUARD_SOCKET = "/run/leeward/guard.sock"
ADMIN = "root"


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of each part a cluster has, and which hosts can lose the shared pool (`Host.detach_storage`)."""

    etcd_members: int = 1
    controllers: int = 2
    hosts: int = 3
    detachable_pool: tuple[str, ...] = ()

    @property
    def etcd_names(self) -> tuple[str, ...]:
        """etcd-1, ..."""
        return tuple(f"etcd-{number}" for number in range(1, self.etcd_members + 1))

    @property
    def controller_names(self) -> tuple[str, ...]:
        """control-1, ..."""
        return tuple(f"control-{number}" for number in range(1, self.controllers + 1))

    @property
    def host_names(self) -> tuple[str, ...]:
        """host-a, ..."""
        return tuple(f"host-{chr(ord('a') + index)}" for index in range(self.hosts))
