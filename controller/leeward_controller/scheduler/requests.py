"""What an instance asks of its next place, put together from its record and a replica's view."""

from dataclasses import replace

from leeward import keys
from leeward.agent.types import CpuReport
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.node import NodeCondition
from leeward_controller.scheduler.candidates import report_of, shared_pools
from leeward_controller.scheduler.groups import Companions, companions_of
from leeward_controller.scheduler.model import PlacementRequest
from leeward_controller.view import ClusterView

_STAYS = (NodeCondition.READY, NodeCondition.CORDONED)


def request_for(
    view: ClusterView,
    instance: Instance,
    *,
    named: str = "",
    excluded: tuple[tuple[str, str], ...] = (),
    resources: Resources | None = None,
    for_live: bool = False,
    abandons_disks: bool = False,
    lost_node: bool = False,
) -> PlacementRequest:
    """The request for an instance as it is recorded; `resources` are those it is to have, by default those it has.

    `for_live` asks for a processor that its running guest can go on with, as a suspended one always needs. Disks in a
    shared pool stay there; those in a pool of its node alone stay on that node and go to some pool of any other, a
    local one where there is one; from a `lost_node` they can go nowhere. With `abandons_disks` such are made anew in
    whatever pool fits best.
    """
    request = PlacementRequest(
        instance_uid=instance.uid,
        resources=resources or instance.resources,
        node=named,
        excluded=excluded,
        data_disks_gib=sum(instance.data_disks_gib),
        storage=instance.storage,
        required_labels=instance.placement.required_labels,
        preferred_labels=instance.placement.preferred_labels,
        cpu_model=instance.cpu_model,
        source_cpu=_cpu_of(view, instance.node) if for_live or _has_memory(instance) else None,
        companions=_companions(view, instance, lost=instance.node if lost_node else ""),
    )
    if not instance.pool_id:
        return request
    if instance.pool_id in shared_pools(view):
        return replace(request, pool_id=instance.pool_id)
    if abandons_disks:
        return request
    if lost_node:
        return replace(request, pool_id=instance.pool_id)
    return replace(request, prefers_local=True, home_node=instance.node, home_pool_id=instance.pool_id)


def companions_in(view: ClusterView, group: Group, instance_uid: str, *, lost: str = "") -> Companions:
    """The other members' places, where those on a node that is `lost`, or being emptied, do not hold anybody back."""
    return companions_of(group, instance_uid, is_left=lambda node: node == lost or _is_left(view, node))


def is_lost_with_its_node(view: ClusterView, instance: Instance) -> bool:
    """Whether an instance's disks are in a pool that only its own node has."""
    return bool(instance.pool_id) and instance.pool_id not in shared_pools(view)


def _companions(view: ClusterView, instance: Instance, *, lost: str) -> Companions | None:
    stored = view.groups.get(keys.group(instance.group)) if instance.group else None
    return None if stored is None else companions_in(view, stored.value, instance.uid, lost=lost)


def _is_left(view: ClusterView, node_id: str) -> bool:
    stored = view.nodes.get(keys.node(node_id))
    return stored is None or node_id not in view.leases or stored.value.shown_condition not in _STAYS


def _has_memory(instance: Instance) -> bool:
    """Whether it is to wake from memory that was written with the processor of the node it is on."""
    return instance.state is InstanceState.SUSPENDED


def _cpu_of(view: ClusterView, node_id: str) -> CpuReport | None:
    stored = view.nodes.get(keys.node(node_id))
    return None if stored is None else report_of(view, stored.value).cpu
