"""Properties of images that say what guests need: the others are for people and programs beside Leeward."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from leeward.agent.types import Firmware, MachineType
from leeward.errors import InvalidArgument
from leeward_controller.domain.catalog import Image
from leeward_controller.services.checks import Checks

MACHINE = "machine"
FIRMWARE = "firmware"

E = TypeVar("E", bound=StrEnum)


def check_properties(checks: Checks, properties: Mapping[str, str], field: str) -> None:
    """Note properties that are too many or too long, and a machine or firmware that there is not."""
    checks.labels(properties, field)
    checks.parsed(lambda: _known(properties, MACHINE, MachineType.Q35, field), MachineType.Q35)
    checks.parsed(lambda: _known(properties, FIRMWARE, Firmware.BIOS, field), Firmware.BIOS)


def machine_of(image: Image, *, field: str) -> MachineType:
    """The chipset that the image is for. Raises InvalidArgument naming `field`."""
    return _known(image.properties, MACHINE, MachineType.Q35, f"{field}.properties")


def firmware_of(image: Image, *, field: str) -> Firmware:
    """What the image boots with. Raises InvalidArgument naming `field`."""
    return _known(image.properties, FIRMWARE, Firmware.BIOS, f"{field}.properties")


def _known(properties: Mapping[str, str], key: str, usual: E, field: str) -> E:
    kind = type(usual)
    value = properties.get(key, usual.value)
    try:
        return kind(value)
    except ValueError as error:
        allowed = ", ".join(member.value for member in kind)
        raise InvalidArgument.field(f"{field}[{key}]", f"{value!r} is not known; allowed: {allowed}") from error
