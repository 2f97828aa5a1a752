"""The values that a controller and an agent exchange, free of protobuf.

`leeward.agent.api` is the port that carries them; `leeward.agent.convert` maps them to the wire.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

SHA256_HEX_LENGTH = 64


class GuestState(StrEnum):
    """What a guest is doing on one host, as its hypervisor tells it."""

    RUNNING = "RUNNING"  # Its processors execute.
    PAUSED = "PAUSED"  # In memory, not executing: on request, by an I/O error, or as one end of a migration.
    STOPPED = "STOPPED"  # Defined on the host, no QEMU process.
    ABSENT = "ABSENT"  # The host knows nothing of it.


class StopCause(StrEnum):
    """Why a guest that is not running stopped."""

    NONE = "NONE"  # It is running, or was never started here.
    REQUESTED = "REQUESTED"  # Leeward stopped it.
    GUEST = "GUEST"  # The guest shut itself down.
    CRASHED = "CRASHED"  # QEMU ended by itself, or was killed from outside.
    MIGRATED = "MIGRATED"  # It moved to another host.
    FENCED = "FENCED"  # The guard, or a poison pill, killed it.


class DiskFormat(StrEnum):
    """The disk formats that Leeward accepts."""

    RAW = "raw"  # Bytes as the guest sees them.
    QCOW2 = "qcow2"  # QEMU's format; only without backing file, data file or encryption.


class PoolKind(StrEnum):
    """What a pool is made of."""

    DIRECTORY = "DIRECTORY"  # A directory; shared when two nodes report the same pool id.


class MachineType(StrEnum):
    """The chipset that a guest sees."""

    Q35 = "q35"  # PCI Express.
    PC = "pc"  # The older i440FX, for guests that know nothing newer.


class Firmware(StrEnum):
    """What a guest boots with."""

    BIOS = "bios"  # SeaBIOS.
    UEFI = "uefi"  # OVMF, with variables of the guest's own beside its disk.


class RebootMode(StrEnum):
    """How a guest is restarted."""

    SOFT = "SOFT"  # Ask the guest by ACPI, and wait.
    HARD = "HARD"  # Reset the virtual machine at once.


class MigrationPhase(StrEnum):
    """Where a live migration stands."""

    PREPARING = "PREPARING"  # The destination is being made ready.
    COPYING = "COPYING"  # Memory is copied while the guest runs.
    SWITCHING = "SWITCHING"  # The guest is stopped here and about to run there.
    COMPLETED = "COMPLETED"  # It runs on the destination; the source holds nothing.
    FAILED = "FAILED"  # It runs on the source as before.
    CANCELLED = "CANCELLED"  # Cancelled on request; it runs on the source as before.


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and by what right: idempotency key and fencing token of a mutating call.

    `revision` is the store revision of the operation's record as the caller last wrote it: it grows with each step,
    with each takeover by another controller, and from one operation on a guest to the next. For each guest an agent
    remembers the highest it has seen and refuses a lower one with StaleClaim: that of a controller that has been
    superseded, or of an earlier step, which a network or a stopped process has kept until now.
    """

    operation: str
    step: str
    revision: int


@dataclass(frozen=True, slots=True)
class PoolReport:
    """A pool as one agent sees it. `pool_id` comes from the marker file in the pool itself."""

    pool_id: str
    kind: PoolKind
    capacity_gib: int
    available_gib: int
    healthy: bool = True
    shared: bool = False  # Whether other hosts can have it too, as far as this host can tell.
    root: str = ""  # Its directory on that host, for agents that send guests there; controllers never name a path.


@dataclass(frozen=True, slots=True)
class CpuReport:
    """The processor that guests can have on a host.

    `model` and `features` are what a guest without a named model gets; `usable_models` are the named ones that can be
    had, in order of name.
    """

    model: str = ""
    features: tuple[str, ...] = ()
    usable_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What an agent says of its host; the value of its heartbeat key."""

    node: str
    boot_id: str
    agent_id: str  # New at each start of the agent.
    address: str  # host:port of the agent's server
    vcpus: int
    memory_mib: int
    pools: tuple[PoolReport, ...]
    hypervisor: str  # "qemu", "kvm" or "simulated"
    hypervisor_version: str
    agent_version: str
    guard_armed: bool
    lease_ttl_s: float
    guard_delay_s: float
    labels: dict[str, str] = field(default_factory=dict)
    draining: bool = False
    cpu: CpuReport = field(default_factory=CpuReport)
    pill_id: str = ""  # The poison pill that was found for this boot: no guest on a shared pool may run.


@dataclass(frozen=True, slots=True)
class Nic:
    """One network interface: a bridge on the host (empty: QEMU's own user network) and the guest's address."""

    mac: str
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class CloudInit:
    """What a guest is told at its first boot, through a NoCloud seed disk."""

    user_data: bytes = b""
    ssh_authorized_keys: tuple[str, ...] = ()


class ProbeKind(StrEnum):
    """What tells that a guest is ready."""

    GUEST_AGENT = "GUEST_AGENT"  # Its guest agent answers.
    TCP_PORT = "TCP_PORT"  # A TCP port takes connections.


@dataclass(frozen=True, slots=True)
class GuestProbe:
    """One way to ask a guest whether it is ready. A port is at `host`, as the guest's own host reaches it."""

    kind: ProbeKind
    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class RescueImage:
    """The image that a guest boots in rescue, before its own disk."""

    digest: str
    format: DiskFormat


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """All that an agent needs to run a guest. Never XML, never a path.

    With `rescue` it boots a disk made from that image, and its own root disk comes second.
    """

    uid: str
    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    pool_id: str
    image_digest: str
    image_format: DiskFormat
    run_epoch: int
    nics: tuple[Nic, ...] = ()
    data_disks_gib: tuple[int, ...] = ()
    machine: MachineType = MachineType.Q35
    firmware: Firmware = Firmware.BIOS
    cpu_model: str = ""  # A named model; empty: as the host's.
    cloud_init: CloudInit | None = None
    rescue: RescueImage | None = None


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """A guest on one host. `run_epoch` is the one it was started with (0 when not known)."""

    uid: str
    name: str
    state: GuestState
    stop_cause: StopCause = StopCause.NONE
    run_epoch: int = 0
    migrating: bool = False


@dataclass(frozen=True, slots=True)
class SlotObservation:
    """What one observer has seen of one node's storage heartbeat.

    `silent_s` counts, on the observer's monotonic clock, from when it first saw the slot's present content; an
    observer that has just started counts from its start, so silence is never overstated.
    """

    pool_id: str
    node: str
    boot_id: str
    sequence: int
    silent_s: float
    acknowledged: str = ""  # The poison pill that the node says it has taken: no guest of its on shared pools is left.


@dataclass(frozen=True, slots=True)
class MigrationDestination:
    """Where a live migration goes: the node, how its agent is reached, and the boot of it that is meant (empty: any).

    A guest that arrived in another boot than the cluster knows of would be taken for dead with the boot before.
    """

    node: str
    address: str
    boot_id: str = ""


class Escalation(StrEnum):
    """How far a live migration may go to come to its end with a guest that changes its memory fast."""

    NONE = "NONE"  # Only copy; when it does not converge, its timeout ends it.
    AUTO_CONVERGE = "AUTO_CONVERGE"  # Slow the guest's processors down.
    POST_COPY = "POST_COPY"  # Then switch over and fetch the rest: the guest is lost if either host dies in that time.
    PAUSE = "PAUSE"  # Halt the guest until the rest is copied, whatever the downtime. Does without post-copy.


@dataclass(frozen=True, slots=True)
class MigrationLimits:
    """Bounds of a live migration; 0 leaves a value to the hypervisor.

    With `copies_disks` the guest's disks are in a pool of the source alone and are copied into `target_pool_id`.
    """

    bandwidth_mib_s: int = 0
    max_downtime_ms: int = 300
    timeout_s: float = 3600.0
    escalation: Escalation = Escalation.AUTO_CONVERGE
    copies_disks: bool = False
    target_pool_id: str = ""


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """One moment of a live migration. Figures are those of libvirt's job statistics; 0 where not known yet."""

    phase: MigrationPhase
    elapsed_ms: int = 0
    memory_total_bytes: int = 0
    memory_processed_bytes: int = 0
    memory_remaining_bytes: int = 0
    dirty_rate_bytes_s: int = 0
    throughput_bytes_s: int = 0
    iteration: int = 0
    remaining_ms: int = 0
    expected_downtime_ms: int = 0
    downtime_ms: int = 0
    disk_total_bytes: int = 0
    disk_processed_bytes: int = 0
    disk_remaining_bytes: int = 0
    decision: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a pool: immutable, named by the SHA-256 of its bytes."""

    digest: str
    size_bytes: int
    virtual_size_bytes: int
    format: DiskFormat


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """An image made of a guest's root disk; `quiesced` when the guest's file systems were frozen at that moment."""

    image: ImageFile
    quiesced: bool


@dataclass(frozen=True, slots=True)
class PoolSource:
    """Where another node's agent offers images and disks of one of its pools."""

    node: str
    address: str
    pool_id: str


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image in a pool, as an inventory finds it: whose disks are based on it, and how long it has lain there."""

    digest: str
    size_bytes: int
    users: tuple[str, ...]
    age_s: float


@dataclass(frozen=True, slots=True)
class HeldGuest:
    """What a pool holds for one guest: the names of the files, and the right to run as recorded beside them."""

    uid: str
    files: tuple[str, ...]
    run_epoch: int
    node: str
    age_s: float


@dataclass(frozen=True, slots=True)
class PoolInventory:
    """All that a pool holds."""

    pool_id: str
    images: tuple[HeldImage, ...]
    guests: tuple[HeldGuest, ...]


@dataclass(frozen=True, slots=True)
class PutAside:
    """A guest that a host held although the right to run it had moved to `holder`: ended, and its definition kept."""

    uid: str
    name: str
    run_epoch: int
    holder: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that one host holds: its pools, the guests its hypervisor knows, and what lies in the agent's own folders.

    `sockets` and `console_logs` are the uids of guests that such a file was found for; of logs, those that nothing was
    written to for some minutes.
    """

    pools: tuple[PoolInventory, ...]
    guests: tuple[GuestStatus, ...]
    sockets: tuple[str, ...]
    console_logs: tuple[str, ...]
    put_aside: tuple[PutAside, ...] = ()


@dataclass(frozen=True, slots=True)
class ConsoleChunk:
    """Part of a guest's serial console log. `next_offset` continues where this chunk ends."""

    data: bytes
    next_offset: int
    end_offset: int
