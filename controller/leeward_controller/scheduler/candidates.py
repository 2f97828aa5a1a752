"""From a replica's view to the scheduler's snapshot."""

from leeward import keys
from leeward_controller.domain.node import NodeAllocation
from leeward_controller.scheduler.placement import Candidate
from leeward_controller.view import ClusterView


def candidates(view: ClusterView) -> list[Candidate]:
    """Every node that has registered, as the view knows it now."""
    found = []
    for stored in view.nodes.values():
        node = stored.value
        lease = view.leases.get(node.node)
        report = lease.report if lease else node.report
        allocation = view.allocations.get(keys.allocation(node.node))
        found.append(
            Candidate(
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
        )
    return found
