"""From a replica's view to the scheduler's snapshot."""

from collections import Counter

from leeward import keys
from leeward.agent.types import NodeReport
from leeward_controller.domain.node import Node, NodeAllocation
from leeward_controller.scheduler.model import Candidate, CandidatePool
from leeward_controller.view import ClusterView


def candidates(view: ClusterView) -> list[Candidate]:
    """Every node that has registered, as the view knows it now."""
    shared = shared_pools(view)
    return [_candidate(view, stored.value, shared) for stored in view.nodes.values()]


def candidate(view: ClusterView, node_id: str) -> Candidate | None:
    """One node that has registered, as the view knows it now."""
    stored = view.nodes.get(keys.node(node_id))
    return None if stored is None else _candidate(view, stored.value, shared_pools(view))


def shared_pools(view: ClusterView) -> frozenset[str]:
    """The pools that several nodes have, or could have, as their agents last told."""
    return view.of_topology(_shared_pools)


def _shared_pools(view: ClusterView) -> frozenset[str]:
    reporters: Counter[str] = Counter()
    shared = set()
    for stored in view.nodes.values():
        for pool in report_of(view, stored.value).pools:
            reporters[pool.pool_id] += 1
            if pool.shared:
                shared.add(pool.pool_id)
    return frozenset(shared | {pool_id for pool_id, count in reporters.items() if count > 1})


def report_of(view: ClusterView, node: Node) -> NodeReport:
    """What a node's agent tells now, or told last."""
    lease = view.leases.get(node.node)
    return lease.report if lease else node.report


def _candidate(view: ClusterView, node: Node, shared: frozenset[str]) -> Candidate:
    report = report_of(view, node)
    found = view.allocations.get(keys.allocation(node.node))
    allocation = found.value if found else NodeAllocation(node.node)
    pools = tuple(
        CandidatePool(
            pool_id=pool.pool_id,
            shared=pool.pool_id in shared,
            capacity_gib=pool.capacity_gib,
            taken_elsewhere_gib=view.promised_gib[pool.pool_id] - allocation.disk_gib_by_pool.get(pool.pool_id, 0),
        )
        for pool in report.pools
        if pool.healthy
    )
    return Candidate(
        node=node.node,
        condition=node.condition,
        alive=node.node in view.leases,
        cordoned=node.cordoned,
        vcpus=report.vcpus,
        memory_mib=report.memory_mib,
        pools=pools,
        allocation=allocation,
        draining=report.draining,
        labels={**report.labels, **node.labels},
        cpu=report.cpu,
    )
