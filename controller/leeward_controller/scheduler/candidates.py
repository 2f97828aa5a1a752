"""From a replica's view to the scheduler's snapshot."""

from leeward import keys
from leeward_controller.domain.node import Node, NodeAllocation
from leeward_controller.scheduler.placement import Candidate
from leeward_controller.view import ClusterView


def candidates(view: ClusterView) -> list[Candidate]:
    """Every node that has registered, as the view knows it now."""
    return [_candidate(view, stored.value) for stored in view.nodes.values()]


def candidate(view: ClusterView, node_id: str) -> Candidate | None:
    """One node that has registered, as the view knows it now."""
    stored = view.nodes.get(keys.node(node_id))
    return None if stored is None else _candidate(view, stored.value)


def _candidate(view: ClusterView, node: Node) -> Candidate:
    lease = view.leases.get(node.node)
    report = lease.report if lease else node.report
    allocation = view.allocations.get(keys.allocation(node.node))
    return Candidate(
        node=node.node,
        condition=node.condition,
        alive=lease is not None,
        cordoned=node.cordoned,
        vcpus=report.vcpus,
        memory_mib=report.memory_mib,
        pool_ids=frozenset(pool.pool_id for pool in report.pools if pool.healthy),
        allocation=allocation.value if allocation else NodeAllocation(node.node),
        draining=report.draining,
    )
