"""What is written down about a cluster, so that another process can find it again or clear it away."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leeward_lab.guest.commands import LabError
from leeward_lab.hosts.processes import ProcessRef

STATE_FILE = "cluster.json"
_REGISTRY = Path("/run/leeward-lab")
_LOCK = Path("/run/lock/leeward-lab.lock")


@dataclass(slots=True)
class ProcessState:
    """A program running inside a host."""

    process: ProcessRef
    log: str


@dataclass(slots=True)
class HostState:
    """One host: what never changes, and what runs now."""

    name: str
    index: int
    host_uuid: str
    libvirt: bool
    detachable_pool: bool = False
    pid1: ProcessRef | None = None
    outside: ProcessRef | None = None
    processes: dict[str, ProcessState] = field(default_factory=dict)


@dataclass(slots=True)
class ClusterState:
    """One cluster, changed by one process at a time.

    `owner` is the process that it must not outlive; none when it is meant to stay.
    """

    name: str
    cluster_id: str
    directory: str
    subnet: int
    owner: ProcessRef | None
    hosts: list[HostState] = field(default_factory=list)

    def save(self) -> None:
        """Write it to the cluster's directory and to the machine's registry, each atomically."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        _REGISTRY.mkdir(exist_ok=True)
        for path in (Path(self.directory) / STATE_FILE, _registered(self.cluster_id)):
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_text(text)
            partial.replace(path)

    def forget(self) -> None:
        """Remove both copies."""
        (Path(self.directory) / STATE_FILE).unlink(missing_ok=True)
        _registered(self.cluster_id).unlink(missing_ok=True)

    def abandoned(self) -> bool:
        """True when its owner is gone."""
        return self.owner is not None and not self.owner.alive()


def cluster_id(directory: Path, name: str) -> str:
    """Six hexadecimal digits that tell clusters of the same name in different directories apart."""
    return hashlib.sha256(f"{directory}\0{name}".encode()).hexdigest()[:6]


def load(path: Path) -> ClusterState:
    """Read a cluster's state back; `LabError` when there is none or it is not one."""
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise LabError(f"there is no cluster in {path.parent}") from error
    return _parse(text, path)


def registered() -> list[ClusterState]:
    """Every cluster on this machine."""
    found = []
    for path in sorted(_REGISTRY.glob("*.json")):
        # Its owner may destroy it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.append(_parse(path.read_text(), path))
    return found


def _parse(text: str, path: Path) -> ClusterState:
    try:
        raw: dict[str, Any] = json.loads(text)
        hosts = [_host(each) for each in raw.pop("hosts")]
        return ClusterState(**{**raw, "owner": _ref(raw["owner"])}, hosts=hosts)
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"{path} is not the state of a cluster: {error}") from error


@contextlib.asynccontextmanager
async def machine_lock(*, timeout_s: float = 30.0) -> AsyncIterator[None]:
    """Held while names and subnets of the whole machine are chosen or cleared; `LabError` after `timeout_s`."""
    _LOCK.parent.mkdir(exist_ok=True)
    deadline = asyncio.get_running_loop().time() + timeout_s
    descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise LabError(f"another process has held {_LOCK} for {timeout_s:g} s") from error
            await asyncio.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _registered(cluster: str) -> Path:
    return _REGISTRY / f"{cluster}.json"


def _host(raw: dict[str, Any]) -> HostState:
    processes = {
        name: ProcessState(process=ProcessRef(**each["process"]), log=each["log"])
        for name, each in raw["processes"].items()
    }
    return HostState(**{**raw, "pid1": _ref(raw["pid1"]), "outside": _ref(raw["outside"]), "processes": processes})


def _ref(raw: dict[str, int] | None) -> ProcessRef | None:
    return ProcessRef(**raw) if raw else None
