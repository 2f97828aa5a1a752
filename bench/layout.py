"""Where the parts of the measured control plane are: loopback addresses, ports, certificates."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from leeward.identity import ETCD_SERVER_NAME, Role
from leeward.store.etcd import EtcdTls
from leeward.tls import TlsMaterial

CONTROLLERS = ("control-1", "control-2")
ADMIN = "root"
POOL_CAPACITY_GIB = 1_000_000

_CLIENT_PORT, _PEER_PORT, _CONTROLLER_PORT, _AGENT_PORT = 2379, 2380, 7443, 7444


@dataclass(frozen=True, slots=True)
class Layout:
    """One control plane. `network` is the first three numbers of its loopback addresses."""

    directory: str
    network: str
    hosts: int

    @classmethod
    def load(cls, path: Path) -> "Layout":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def save(self) -> Path:
        """Write it down for another process."""
        path = Path(self.directory) / "layout.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @property
    def etcd_address(self) -> str:
        """The address of the one member."""
        return f"{self.network}.251"

    @property
    def etcd_endpoint(self) -> str:
        """Where clients reach it."""
        return f"{self.etcd_address}:{_CLIENT_PORT}"

    @property
    def etcd_peer(self) -> str:
        """Where other members would."""
        return f"{self.etcd_address}:{_PEER_PORT}"

    def controller_address(self, name: str) -> str:
        """host:port of a replica's public API."""
        return f"{self.network}.{252 + CONTROLLERS.index(name)}:{_CONTROLLER_PORT}"

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Those of all replicas."""
        return tuple(map(self.controller_address, CONTROLLERS))

    def agent_address(self, name: str) -> str:
        """host:port of a host's agent."""
        return f"{self.network}.{int(name.removeprefix('host-'))}:{_AGENT_PORT}"

    def certificate_directory(self, role: Role, name: str) -> Path:
        """Where a part's key, certificate and CA lie."""
        return Path(self.directory) / "pki" / f"{role}-{name}"

    def etcd_tls(self, tls: TlsMaterial) -> EtcdTls:
        """What shows `tls` to etcd."""
        return EtcdTls(tls.ca_pem, tls.cert_pem, tls.key_pem, {self.etcd_endpoint: ETCD_SERVER_NAME})
