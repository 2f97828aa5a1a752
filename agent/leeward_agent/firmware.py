"""Where this host has OVMF, QEMU's UEFI firmware."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ovmf:
    """The firmware, and what a new guest's variables are copied from. Both must be of one build."""

    code: Path
    variables: Path


# Debian and Ubuntu, then Fedora and its kin. Those with 4 MiB first: the smaller ones are being phased out.
_PLACES = (
    Ovmf(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    Ovmf(Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")),
    Ovmf(Path("/usr/share/edk2/ovmf/OVMF_CODE.fd"), Path("/usr/share/edk2/ovmf/OVMF_VARS.fd")),
)


def find_ovmf() -> Ovmf | None:
    """The first that is there; None where guests with UEFI cannot run. Blocking."""
    return next((each for each in _PLACES if each.code.is_file() and each.variables.is_file()), None)
