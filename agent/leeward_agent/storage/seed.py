"""The seed disk from which cloud-init learns at a guest's first boot who it is. Pure.

What the files are called and hold: cloud-init's documentation of its data source NoCloud, and of network configuration
version 2. JSON is YAML too, so no YAML is written here.
"""

import io
import json

import pycdlib

from leeward.agent.types import CloudInit, GuestSpec

_LABEL = "CIDATA"  # cloud-init looks for a file system of this name, in small letters or capitals.
_NO_USER_DATA = b"#cloud-config\n{}\n"


def build_seed(spec: GuestSpec, cloud_init: CloudInit) -> bytes:
    """An ISO 9660 file system with the guest's meta-data, user data and network configuration."""
    files = {
        "meta-data": _json(_meta_data(spec, cloud_init)),
        "user-data": cloud_init.user_data or _NO_USER_DATA,
        "network-config": _json(_network_config(spec)),
    }
    iso = pycdlib.PyCdlib()
    # Rock Ridge carries the names on Linux, Joliet on Windows and the BSDs; ISO 9660's own have eight letters.
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=_LABEL)
    try:
        for name, data in files.items():
            short = name.upper().replace("-", "_")
            iso.add_fp(io.BytesIO(data), len(data), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}")
        output = io.BytesIO()
        iso.write_fp(output)
    finally:
        iso.close()
    return output.getvalue()


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
