"""How a guest's folder in a pool is laid out: `instances/<uid>/`."""

import re
from pathlib import Path

from leeward.agent.disk_files import KEPT_ROOT_DISK, MEMORY_FILE, RESCUE_DISK, ROOT_DISK, SEED_DISK
from leeward.agent.types import Firmware, GuestSpec
from leeward_agent.domain.guest_files import GuestDisks
from leeward_agent.storage.names import checked_digest, checked_uid

FIRMWARE_VARS = "nvram.fd"
DISK_RECORD = "disk.json"
LOCK = ".lock"
INCOMING = ".incoming"  # The folder of what another pool's copy has brought so far.
NEW = ".new"  # Ends the name of a file that is not whole yet; whoever holds the folder's lock may delete it.
NEW_MEMORY = MEMORY_FILE + NEW
NEW_SNAPSHOT = "snapshot" + NEW

_DATA_DISK = re.compile(r"data-[1-9][0-9]{0,2}\.qcow2")
_CARRIED = frozenset({ROOT_DISK, KEPT_ROOT_DISK, RESCUE_DISK, SEED_DISK, MEMORY_FILE, FIRMWARE_VARS})


def data_disk(number: int) -> str:
    """The name of the guest's data disk, counted from 1."""
    return f"data-{number}.qcow2"


def is_carried(name: str) -> bool:
    """Whether a file goes with the guest to another pool; the right to run it and what is half-made do not."""
    return name in _CARRIED or _DATA_DISK.fullmatch(name) is not None


def is_qcow2(name: str) -> bool:
    """Whether the file is a disk that may be based on an image."""
    return name.endswith(".qcow2")


def guest_disks(folder: Path, spec: GuestSpec) -> GuestDisks:
    """Where the disks are that the guest's spec names."""
    return GuestDisks(
        root=folder / ROOT_DISK,
        data=tuple(folder / data_disk(number) for number in range(1, len(spec.data_disks_gib) + 1)),
        seed=folder / SEED_DISK if spec.cloud_init is not None else None,
        rescue=folder / RESCUE_DISK if spec.rescue is not None else None,
        firmware_vars=folder / FIRMWARE_VARS if spec.firmware is Firmware.UEFI else None,
    )


def check_names(spec: GuestSpec) -> None:
    """Raises InvalidArgument unless all that becomes part of a path may do so."""
    checked_uid(spec.uid)
    checked_digest(spec.image_digest)
    if spec.rescue is not None:
        checked_digest(spec.rescue.digest)


def wanted_files(spec: GuestSpec) -> list[str]:
    """The files that the guest's spec names, the root disk last."""
    names = [data_disk(number) for number in range(1, len(spec.data_disks_gib) + 1)]
    if spec.cloud_init is not None:
        names.append(SEED_DISK)
    if spec.firmware is Firmware.UEFI:
        names.append(FIRMWARE_VARS)
    if spec.rescue is not None:
        names.append(RESCUE_DISK)
    return [*names, ROOT_DISK]
