"""Which pool of a node an instance's disks go to. Pure."""

from leeward_controller.domain.instance import Storage
from leeward_controller.scheduler.model import Candidate, CandidatePool, PlacementPolicy, PlacementRequest

_KIND = {Storage.ANY: "working", Storage.SHARED: "working shared", Storage.LOCAL: "working local"}


def pick_pool(
    candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy
) -> tuple[CandidatePool | None, str]:
    """The best pool of this node for the request, or None and why there is none."""
    named = request.home_pool_id if candidate.node == request.home_node else request.pool_id
    if named:
        pools = [pool for pool in candidate.pools if pool.pool_id == named]
        if not pools:
            return None, f"it has no working pool {named}"
    else:
        pools = [pool for pool in candidate.pools if _is_wanted(pool, request.storage)]
        if not pools:
            return None, f"it has no {_KIND[request.storage]} pool"
    roomy = [pool for pool in pools if _free_gib(pool, candidate, request, policy) >= request.disk_gib]
    if not roomy:
        pool = max(pools, key=lambda each: _free_gib(each, candidate, request, policy))
        free = int(_free_gib(pool, candidate, request, policy))
        limit = int(pool.capacity_gib * policy.disk_overcommit)
        return None, f"{free} of {limit} GiB in pool {pool.pool_id} are free, {request.disk_gib} are asked for"
    best = min(roomy, key=lambda each: (less_wanted(each, request), -_free_gib(each, candidate, request, policy)))
    return best, ""


def less_wanted(pool: CandidatePool, request: PlacementRequest) -> bool:
    """Whether a pool of the other kind would be preferred."""
    return not request.pool_id and pool.shared is request.prefers_local


def _is_wanted(pool: CandidatePool, storage: Storage) -> bool:
    return storage is Storage.ANY or pool.shared is (storage is Storage.SHARED)


def _free_gib(pool: CandidatePool, candidate: Candidate, request: PlacementRequest, policy: PlacementPolicy) -> float:
    if pool.capacity_gib <= 0:
        return float("inf")
    taken_gib = candidate.allocation.disk_gib_beside(request.instance_uid, pool.pool_id) + pool.taken_elsewhere_gib
    return max(0.0, pool.capacity_gib * policy.disk_overcommit - taken_gib)
