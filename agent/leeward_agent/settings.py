"""The agent's settings: a TOML file, `LEEWARD_AGENT_*` in the environment, flags; the later ones win."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ENVIRONMENT_PREFIX = "LEEWARD_AGENT_"


def _labels(value: object) -> object:
    """`rack=r1,zone=b` from the environment and flags; a table from the file."""
    if not isinstance(value, str):
        return value
    pairs = (part.partition("=") for part in value.split(",") if part)
    return {name: label for name, _, label in pairs}


class AgentSettings(BaseModel):
    """All that can be set. Paths are on this host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str = Field(min_length=1)
    """The node's id; its certificate carries it."""
    listen: str = "0.0.0.0:7444"
    """Where controllers and other agents reach this agent."""
    advertise: str = ""
    """host:port that they are told; as a rule the host's own address. Empty: what it listens on."""
    tls_directory: Path | None = None
    """`ca.pem`, `cert.pem`, `key.pem`. Without, everything is plain text and must be on loopback."""
    etcd_endpoints: tuple[str, ...] = Field(min_length=1)
    """`host:port` of each member."""
    etcd_tls: bool = True
    """Whether etcd is spoken to with the same certificate; only with `tls_directory`."""
    pools: tuple[Path, ...] = ()
    """The directories of the pools attached to this host."""
    hypervisor: Literal["qemu", "simulated"] = "qemu"
    """What runs the guests: QEMU under libvirt (with KVM where it works), or a simulation for trying things out."""
    libvirt_uri: str = "qemu:///system"
    """The libvirt of this host."""
    libvirt_socket: Path = Path("/run/libvirt/libvirt-sock")
    """The same libvirt as a unix socket: where incoming migrations are led."""
    guard_socket: Path = Path("/run/leeward/guard.sock")
    """Where the guard listens. Without a guard that answers, nothing is armed, and the node says so."""
    state_directory: Path = Path("/var/lib/leeward/agent")
    """Claims and quarantined definitions; must survive a reboot."""
    socket_directory: Path = Path("/run/leeward/migration")
    """Unix sockets of migrations. Must be the same path on all hosts, and QEMU must be able to make sockets in it."""
    socket_owner: str = ""
    """The user that QEMU runs as, given the directory above; empty where that is root."""
    migration_transport: Literal["tunnel", "native"] = "tunnel"
    """How guests migrate: through the agents' own port and certificates, or directly between libvirts and QEMUs."""
    migration_libvirt_uri: str = "qemu+tls://{host}/system"
    """For native: how another host's libvirt is reached, `{host}` being where its agent is."""
    migration_tls: bool = True
    """For native: whether QEMU encrypts memory and disks, by `default_tls_x509_cert_dir` of its qemu.conf."""
    migration_connections: int = Field(default=0, ge=0, le=255)
    """For native: how many connections carry the memory side by side, except where post-copy is allowed; 0: one."""
    console_directory: Path = Path("/var/log/leeward/console")
    """Serial console logs. Must be the same path on all hosts, since a guest takes it along when it migrates."""
    console_socket_directory: Path = Path("/run/leeward/console")
    """Unix sockets of serial consoles. Must be the same path on all hosts; libvirt makes the sockets in it."""
    lease_ttl_s: int = Field(default=5, ge=2, le=600)
    """How long one renewal keeps the node alive; the same in the whole cluster."""
    drain_timeout_s: float = Field(default=20.0, ge=0)
    """How long calls and migrations under way may take after SIGTERM."""
    post_copy_mend_s: float = Field(default=60.0, gt=0, le=3600)
    """For how long a post-copy migration whose connection broke is tried to be gone on with. Its guest is lost then."""
    reconcile_interval_s: float = Field(default=5.0, gt=0)
    """How often the host is searched for leftovers and held-up guests."""
    labels: Annotated[dict[str, str], BeforeValidator(_labels)] = Field(default_factory=dict)
    """Labels for placement."""
    vcpus: int = Field(default=0, ge=0)
    """Processors to report instead of the host's own; 0: the host's own."""
    memory_mib: int = Field(default=0, ge=0)
    """Memory to report instead of the host's own; 0: the host's own."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines to write."""
