"""What a guest's spec may hold, before any of it becomes part of a path, a definition or a command."""

import re

from leeward.agent.types import SHA256_HEX_LENGTH, CloudInit, GuestSpec, Nic, RescueImage
from leeward.errors import FieldViolation, InvalidArgument

_UID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(rf"[0-9a-f]{{{SHA256_HEX_LENGTH}}}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# IFNAMSIZ in linux/if.h: 16 bytes with the terminating zero.
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
# As libvirt names them, e.g. Cascadelake-Server-noTSX, or qemu64-v1.
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DATA_DISKS_MAX = 8
_USER_DATA_MAX_BYTES = 1024 * 1024
_NAME_MAX_LENGTH = 200
_MULTICAST_BIT = 0x01


def check_spec(spec: GuestSpec) -> None:
    """Raises InvalidArgument, naming every field that is wrong."""
    violations = [
        *_positive(spec),
        *_check(bool(_UID.fullmatch(spec.uid)), "spec.uid", "must be 1 to 63 characters of a-z, 0-9 and '-'"),
        *_check(_is_text(spec.name), "spec.name", f"must be 1 to {_NAME_MAX_LENGTH} printable characters"),
        *_check(bool(_DIGEST.fullmatch(spec.image_digest)), "spec.image_digest", "must be a SHA-256 in lower-case hex"),
        *(violation for index, nic in enumerate(spec.nics) for violation in _check_nic(nic, f"spec.nics[{index}]")),
        *_check_data_disks(spec.data_disks_gib),
        *_check(not spec.cpu_model or bool(_CPU_MODEL.fullmatch(spec.cpu_model)), "spec.cpu_model", "is no CPU model"),
        *_check_cloud_init(spec.cloud_init),
        *_check_rescue(spec.rescue),
    ]
    if violations:
        story = "; ".join(f"{each.field} {each.description}" for each in violations)
        raise InvalidArgument(f"the guest's spec is not acceptable: {story}", fields=violations)


def _positive(spec: GuestSpec) -> list[FieldViolation]:
    numbers = {
        "vcpus": spec.vcpus,
        "memory_mib": spec.memory_mib,
        "disk_gib": spec.disk_gib,
        "run_epoch": spec.run_epoch,
    }
    return [FieldViolation(f"spec.{field}", "must be positive") for field, value in numbers.items() if value <= 0]


def _check_nic(nic: Nic, field: str) -> list[FieldViolation]:
    mac_is_good = bool(_MAC.fullmatch(nic.mac)) and not int(nic.mac[:2], 16) & _MULTICAST_BIT
    return [
        *_check(mac_is_good, f"{field}.mac", "must be a unicast address such as 02:00:00:00:00:01, in lower case"),
        *_check(not nic.bridge or bool(_BRIDGE.fullmatch(nic.bridge)), f"{field}.bridge", "must be a bridge's name"),
    ]


def _check_data_disks(sizes_gib: tuple[int, ...]) -> list[FieldViolation]:
    field = "spec.data_disks_gib"
    return [
        *_check(len(sizes_gib) <= _DATA_DISKS_MAX, field, f"must be at most {_DATA_DISKS_MAX}"),
        *_check(all(size_gib > 0 for size_gib in sizes_gib), field, "must be positive, each of them"),
    ]


def _check_cloud_init(cloud_init: CloudInit | None) -> list[FieldViolation]:
    if cloud_init is None:
        return []
    keys = cloud_init.ssh_authorized_keys
    return [
        *_check(
            len(cloud_init.user_data) <= _USER_DATA_MAX_BYTES,
            "spec.cloud_init.user_data",
            f"must be at most {_USER_DATA_MAX_BYTES} bytes",
        ),
        *_check(
            all(key.isprintable() and key for key in keys),
            "spec.cloud_init.ssh_authorized_keys",
            "must be one line each, of printable characters",
        ),
    ]


def _check_rescue(rescue: RescueImage | None) -> list[FieldViolation]:
    is_good = rescue is None or bool(_DIGEST.fullmatch(rescue.digest))
    return _check(is_good, "spec.rescue.digest", "must be a SHA-256 in lower-case hex")


def _is_text(name: str) -> bool:
    return 0 < len(name) <= _NAME_MAX_LENGTH and name.isprintable()


def _check(holds: bool, field: str, description: str) -> list[FieldViolation]:
    return [] if holds else [FieldViolation(field, description)]
