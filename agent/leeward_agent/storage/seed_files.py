"""What cloud-init is told at a guest's first boot: the files of its seed disk. Pure.

What the files are called and hold: cloud-init's documentation of its data source NoCloud, and of network configuration
version 2. JSON is YAML too, so no YAML is written here.
"""

import json

from leeward.agent.types import CloudInit, GuestSpec

_NO_USER_DATA = b"#cloud-config\n{}\n"


def seed_files(spec: GuestSpec, cloud_init: CloudInit) -> dict[str, bytes]:
    """The guest's meta-data, user data and network configuration, by name."""
    return {
        "meta-data": _json(_meta_data(spec, cloud_init)),
        "user-data": cloud_init.user_data or _NO_USER_DATA,
        "network-config": _json(_network_config(spec)),
    }


def _meta_data(spec: GuestSpec, cloud_init: CloudInit) -> dict[str, object]:
    return {
        "instance-id": spec.uid,
        "local-hostname": spec.name.rpartition("/")[2],
        "public-keys": list(cloud_init.ssh_authorized_keys),
    }


def _network_config(spec: GuestSpec) -> dict[str, object]:
    """DHCP on each interface, found by its address, whatever the guest's kernel calls it.

    Only the first may be waited for at boot: the others may be on bridges where nobody answers.
    """
    ethernets = {
        f"nic{number}": {"match": {"macaddress": nic.mac}, "dhcp4": True, "dhcp6": True, "optional": number > 0}
        for number, nic in enumerate(spec.nics)
    }
    return {"version": 2, "ethernets": ethernets}


def _json(value: dict[str, object]) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
