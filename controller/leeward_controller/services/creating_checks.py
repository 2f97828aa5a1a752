"""Checking what is asked of a new instance, before anything is looked up."""

import base64
import binascii
import re
from collections.abc import Sequence

from leeward import names
from leeward.agent.types import CloudInit, ProbeKind
from leeward_controller.domain.instance import PlacementRules, Readiness
from leeward_controller.scheduler.cpu import BASELINE
from leeward_controller.services.checks import Checks

MAX_NICS = 8
MAX_DATA_DISKS = 8
MAX_DATA_DISK_GIB = 65_536
MAX_USER_DATA_BYTES = 64 * 1024
MAX_SSH_KEYS = 64
MAX_SSH_KEY_LENGTH = 8192
_MAX_BRIDGE_LENGTH = 15  # Linux: IFNAMSIZ is 16 with its final zero.

# The kinds of public keys that OpenSSH knows (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").
_SSH_KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LEAST_READY_S = 1
_MOST_READY_S = 600
_ADDRESS = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}\Z")
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")


def check_bridges(checks: Checks, bridges: Sequence[str]) -> None:
    """Note too many interfaces, and names that no bridge can have; an empty one is the user network."""
    field = "instance.network_interfaces"
    checks.that(len(bridges) <= MAX_NICS, field, f"has {len(bridges)} entries, at most {MAX_NICS} are allowed")
    for index, bridge in enumerate(bridges):
        checks.that(
            not bridge or _is_bridge(bridge),
            f"{field}[{index}].bridge",
            f"{bridge!r} is not empty and not 1 to {_MAX_BRIDGE_LENGTH} characters of A-Z, a-z, 0-9 and '._-'",
        )


def check_data_disks(checks: Checks, sizes_gib: Sequence[int]) -> None:
    """Note too many disks, and sizes that are out of bounds."""
    field = "instance.data_disks_gib"
    count = len(sizes_gib)
    checks.that(count <= MAX_DATA_DISKS, field, f"has {count} entries, at most {MAX_DATA_DISKS} are allowed")
    for index, size_gib in enumerate(sizes_gib):
        checks.between(size_gib, 1, MAX_DATA_DISK_GIB, f"{field}[{index}]", " GiB")


def check_cloud_init(checks: Checks, cloud_init: CloudInit | None) -> None:
    """Note user data that is too long, and what is no public key."""
    if cloud_init is None:
        return
    field, size = "instance.cloud_init", len(cloud_init.user_data)
    too_long = f"has {size} bytes, at most {MAX_USER_DATA_BYTES} are allowed"
    checks.that(size <= MAX_USER_DATA_BYTES, f"{field}.user_data", too_long)
    keys, field = cloud_init.ssh_authorized_keys, f"{field}.ssh_authorized_keys"
    checks.that(len(keys) <= MAX_SSH_KEYS, field, f"has {len(keys)} entries, at most {MAX_SSH_KEYS} are allowed")
    for index, key in enumerate(keys):
        if why := _why_no_key(key):
            checks.that(False, f"{field}[{index}]", why)


def check_placement(checks: Checks, rules: PlacementRules) -> None:
    """Note labels that no node can have."""
    checks.labels(rules.required_labels, "instance.placement.required_labels")
    checks.labels(rules.preferred_labels, "instance.placement.preferred_labels")


def check_cpu_model(checks: Checks, model: str) -> None:
    """Note what cannot be a model's name."""
    allowed = f"{BASELINE!r}, or a model of 1 to 64 characters of A-Z, a-z, 0-9 and '._+-', a letter or digit first"
    checks.that(not model or bool(_CPU_MODEL.match(model)), "instance.cpu_model", f"{model!r} is not {allowed}")


def check_group(checks: Checks, group: str, *, project: str) -> None:
    """Note what is no group of the instance's own project. Whether the group exists is not looked up."""
    if not group:
        return
    field = "instance.group"
    owner, _ = checks.parsed(lambda: names.project_group(group, field=field), (project, ""))
    checks.that(not project or owner == project, field, f"{group} is not in the instance's project {project!r}")


def check_readiness(checks: Checks, readiness: Readiness | None) -> None:
    """Note a port that is none, an address where none is meant, and a time that is out of bounds."""
    if readiness is None:
        return
    field, probe = "instance.readiness", readiness.probe
    if probe.kind is ProbeKind.TCP_PORT:
        checks.between(probe.port, 1, 65_535, f"{field}.port")
        address = "an address or a name of 1 to 253 characters of A-Z, a-z, 0-9 and '.:-'"
        checks.that(bool(_ADDRESS.match(probe.host)), f"{field}.host", f"{probe.host!r} is not {address}")
    else:
        checks.that(not probe.host, f"{field}.host", "is only for PROBE_TCP_PORT")
        checks.that(not probe.port, f"{field}.port", "is only for PROBE_TCP_PORT")
    checks.between(readiness.timeout_s, _LEAST_READY_S, _MOST_READY_S, f"{field}.timeout", " s")


def _is_bridge(name: str) -> bool:
    plain = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    return plain and len(name) <= _MAX_BRIDGE_LENGTH


def _why_no_key(line: str) -> str:
    """Why a line is no public key in OpenSSH's format; empty when it is one."""
    if len(line) > MAX_SSH_KEY_LENGTH:
        return f"has {len(line)} characters, at most {MAX_SSH_KEY_LENGTH} are allowed"
    if not line.isprintable():
        return "is not one line of printable characters"
    kind, _, rest = line.partition(" ")
    if kind not in _SSH_KINDS:
        return f"does not begin with a kind of public key: {', '.join(_SSH_KINDS)}"
    try:
        blob = base64.b64decode(rest.partition(" ")[0], validate=True)
    except binascii.Error:
        return f"has no base64 after {kind}"
    # RFC 4253, section 6.6: the key begins with its kind once more, as a string with its length before it.
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()) or len(blob) <= 4 + len(kind):
        return f"is damaged: its base64 is not that of a key of {kind}"
    return ""
