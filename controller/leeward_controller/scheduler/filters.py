"""Why a node cannot take an instance, in words an operator can act on. Pure; the first reason is the one told."""

from collections.abc import Callable

from leeward_controller.domain.node import NodeCondition
from leeward_controller.scheduler.cpu import why_not_model, why_not_taking_over
from leeward_controller.scheduler.groups import why_not_with
from leeward_controller.scheduler.model import Candidate, PlacementPolicy, PlacementRequest
from leeward_controller.scheduler.pools import pick_pool

Filter = Callable[[Candidate, PlacementRequest, PlacementPolicy], str]


def why_not(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> str:
    """The first reason against this node; empty when it can take the instance."""
    return next((reason for each in FILTERS if (reason := each(candidate, request, policy))), "")


def _named(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    return f"nodes/{request.node} was asked for" if request.node and candidate.node != request.node else ""


def _not_excluded(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    return dict(request.excluded).get(candidate.node, "")


def _alive(candidate: Candidate, _: PlacementRequest, __: PlacementPolicy) -> str:
    return "" if candidate.alive else f"its heartbeat is lost ({candidate.condition})"


def _takes_new(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    """A cordon keeps new instances away, not one that holds a place there already."""
    if candidate.cordoned and not candidate.allocation.holds(request.instance_uid):
        return "it is cordoned"
    if candidate.draining:
        return "its agent is stopping"
    return "" if candidate.condition is NodeCondition.READY else f"it is {candidate.condition}"


def _has_labels(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    for key, wanted in sorted(request.required_labels.items()):
        found = candidate.labels.get(key)
        if found is None:
            return f"it has no label {key}, {key}={wanted} is asked for"
        if found != wanted:
            return f"its label {key} is {found}, {wanted} is asked for"
    return ""


def _has_processor(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    if request.cpu_model:
        return why_not_model(candidate.cpu, request.cpu_model)
    return why_not_taking_over(candidate.cpu, request.source_cpu) if request.source_cpu is not None else ""


def _agrees_with_group(candidate: Candidate, request: PlacementRequest, _: PlacementPolicy) -> str:
    return why_not_with(request.companions, candidate.node) if request.companions is not None else ""


def _has_pool(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> str:
    return pick_pool(candidate, request, policy)[1]


def _has_vcpus(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> str:
    wanted = request.resources.vcpus
    if wanted > candidate.vcpus:
        return f"it has {candidate.vcpus} vCPUs, {wanted} are asked for"
    taken, _ = candidate.allocation.beside(request.instance_uid)
    limit = int(candidate.vcpus * policy.vcpu_overcommit)
    free = limit - taken
    return "" if wanted <= free else f"{free} of {limit} vCPUs are free, {wanted} are asked for"


def _has_memory(candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> str:
    _, taken_mib = candidate.allocation.beside(request.instance_uid)
    usable = usable_memory_mib(candidate, policy)
    free = usable - taken_mib
    wanted = request.resources.memory_mib
    return "" if wanted <= free else f"{free} of {usable} MiB memory are free, {wanted} are asked for"


def usable_memory_mib(candidate: Candidate, policy: PlacementPolicy) -> int:
    """How much memory may be promised on this node in all."""
    return int(max(0, candidate.memory_mib - policy.reserved_memory_mib) * policy.memory_overcommit)


FILTERS: tuple[Filter, ...] = (
    _named,
    _not_excluded,
    _alive,
    _takes_new,
    _has_labels,
    _has_processor,
    _agrees_with_group,
    _has_pool,
    _has_vcpus,
    _has_memory,
)
