"""The seed disk from which cloud-init learns at a guest's first boot who it is. Pure."""

import io

import pycdlib

from leeward.agent.types import CloudInit, GuestSpec
from leeward_agent.storage.seed_files import seed_files

_LABEL = "CIDATA"  # cloud-init looks for a file system of this name, in small letters or capitals.


def build_seed(spec: GuestSpec, cloud_init: CloudInit) -> bytes:
    """An ISO 9660 file system with the guest's meta-data, user data and network configuration."""
    files = seed_files(spec, cloud_init)
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
