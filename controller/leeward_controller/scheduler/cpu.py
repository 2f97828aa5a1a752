"""Which guests a host's processor can carry. Pure.

A guest that runs keeps the processor it was started with: a host can take it in only when it has the same model to
offer, and every feature beyond it.
"""

from collections.abc import Iterable

from leeward.agent.types import CpuReport

BASELINE = "baseline"
"""What a caller asks for to get the best named model that all nodes have."""

MODELS_BEST_FIRST = (
    # Intel, newest first; each has all features of those below it except where TSX is left out or left in.
    "GraniteRapids",
    "SapphireRapids",
    "Icelake-Server-noTSX",
    "Icelake-Server",
    "Cooperlake",
    "Cascadelake-Server-noTSX",
    "Cascadelake-Server",
    "Skylake-Server-noTSX-IBRS",
    "Skylake-Server-IBRS",
    "Skylake-Server",
    "Skylake-Client-noTSX-IBRS",
    "Skylake-Client-IBRS",
    "Skylake-Client",
    "Broadwell-noTSX-IBRS",
    "Broadwell-IBRS",
    "Broadwell-noTSX",
    "Broadwell",
    "Haswell-noTSX-IBRS",
    "Haswell-IBRS",
    "Haswell-noTSX",
    "Haswell",
    "IvyBridge-IBRS",
    "IvyBridge",
    "SandyBridge-IBRS",
    "SandyBridge",
    # AMD, newest first.
    "EPYC-Genoa",
    "EPYC-Milan",
    "EPYC-Rome",
    "EPYC-IBPB",
    "EPYC",
    "Opteron_G5",
    "Opteron_G4",
    # What hosts of both vendors can have.
    "Westmere-IBRS",
    "Westmere",
    "Nehalem-IBRS",
    "Nehalem",
    "Penryn",
    "Opteron_G3",
    "Conroe",
    "Opteron_G2",
    "Opteron_G1",
    "kvm64",
    "qemu64",
)
"""Named x86-64 models by how much a guest gets of them.

The order is that of QEMU's documentation ("Preferred CPU models for Intel/AMD x86 hosts", docs/system/cpu-models-x86);
the names are those of libvirt's src/cpu_map. Westmere and older ask for nothing that AMD's processors since 2011 lack.
"""


def baseline(hosts: Iterable[CpuReport]) -> str:
    """The best named model that all of `hosts` have; empty when there is none, or no host."""
    common: set[str] | None = None
    for host in hosts:
        common = set(host.usable_models) if common is None else common & set(host.usable_models)
    return next((model for model in MODELS_BEST_FIRST if model in (common or ())), "")


def why_not_model(host: CpuReport, model: str) -> str:
    """Why a guest with this named model cannot be had on `host`; empty when it can."""
    if model in host.usable_models:
        return ""
    return f"its processor ({host.model or 'of a kind not told'}) cannot be a {model}"


def why_not_taking_over(target: CpuReport, source: CpuReport) -> str:
    """Why a running guest with the processor of `source` cannot go on with that of `target`; empty when it can.

    Features are told beyond the model, so between unlike models it errs on the side of refusing: a named model, or
    the baseline, is for clusters of unlike hosts.
    """
    if not source.model:
        return ""
    if target.model != source.model and source.model not in target.usable_models:
        return f"its processor ({target.model or 'of a kind not told'}) cannot take over from a {source.model}"
    missing = sorted(set(source.features) - set(target.features))
    return f"its processor lacks {', '.join(missing[:8])}, which the guest may use" if missing else ""
