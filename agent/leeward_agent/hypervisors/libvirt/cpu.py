"""The processors that guests can have here, as libvirt's domain capabilities tell. Blocking, and pure."""

import xml.etree.ElementTree as ET

from leeward.agent.types import CpuReport
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.connection import VirConnect
from leeward_agent.hypervisors.libvirt.domain_xml import EMULATED_CPU_MODEL, Accelerator

_ARCHITECTURE = "x86_64"
_MACHINE = "q35"


def read_cpu(connection: VirConnect, accelerator: Accelerator) -> CpuReport:
    """Ask libvirt. It runs QEMU for that the first time, which may take seconds."""
    return parse_cpu(connection.getDomainCapabilities(None, _ARCHITECTURE, _MACHINE, accelerator.value, 0), accelerator)


def parse_cpu(capabilities: str, accelerator: Accelerator) -> CpuReport:
    """Raises HypervisorError when it is not XML."""
    try:
        modes = ET.fromstring(capabilities).find("cpu")
    except ET.ParseError as error:
        raise HypervisorError(f"domain capabilities cannot be read: {error}") from error
    if modes is None:
        return CpuReport()
    models = modes.findall("mode[@name='custom']/model[@usable='yes']")
    usable = tuple(sorted(model.text for model in models if model.text))
    if accelerator is Accelerator.TCG:
        # What a guest gets that names none; its features are those of the model.
        return CpuReport(model=EMULATED_CPU_MODEL, usable_models=usable)
    host = modes.find("mode[@name='host-model']")
    features = host.findall("feature[@policy='require']") if host is not None else []
    return CpuReport(
        model=host.findtext("model", "") if host is not None else "",
        features=tuple(sorted(feature.get("name", "") for feature in features)),
        usable_models=usable,
    )
