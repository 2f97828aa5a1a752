"""Whether a migration can go where it is asked to, and where the guest's files are there."""

from pathlib import Path

from leeward.agent.types import NodeReport, PoolReport
from leeward.errors import WrongState
from leeward_agent.migration_job import MigrationRequest
from leeward_agent.ports import FolderMove, Peer
from leeward_agent.power import in_memory
from leeward_agent.storage.port import Pool


async def check_destination(peer: Peer, request: MigrationRequest) -> NodeReport:
    """The destination's report. Raises WrongState where the migration could only fail later and less clearly."""
    report = await peer.describe_node()
    uid = request.spec.uid
    if report.node != request.destination.node:
        raise WrongState(f"the agent at {request.destination.address} is that of {report.node}")
    if request.destination.boot_id not in ("", report.boot_id):
        raise WrongState(f"{report.node} was rebooted, and the controllers do not know of it yet")
    if report.draining:
        raise WrongState(f"the agent of {report.node} is stopping")
    _check_pool(report, request)
    there = await peer.get_guest(uid=uid)
    if in_memory(there):
        raise WrongState(f"guest {uid} is {there.state} on {report.node} already")
    return report


def folders_of(pool: Pool, report: NodeReport, request: MigrationRequest) -> FolderMove:
    """Where the guest's folder is here and there. Hosts may have a pool, shared or not, in different places."""
    here = pool.disk_path(request.spec.uid).parent
    there = _pool(report, _target_pool(request))
    if there is None or not there.root:
        return FolderMove(here=here, there=here)
    return FolderMove(here=here, there=Path(there.root) / here.relative_to(pool.root))


def _check_pool(report: NodeReport, request: MigrationRequest) -> None:
    uid, pool_id = request.spec.uid, _target_pool(request)
    if request.limits.copies_disks and pool_id == request.spec.pool_id:
        raise WrongState(
            f"the disks of guest {uid} are in pool {pool_id} already, and cannot be copied onto themselves"
        )
    pool = _pool(report, pool_id)
    if pool is None or not pool.healthy:
        what = "is to take the disks" if request.limits.copies_disks else "holds the disk"
        raise WrongState(f"{report.node} has no healthy access to pool {pool_id}, which {what} of guest {uid}")


def _target_pool(request: MigrationRequest) -> str:
    return request.limits.target_pool_id if request.limits.copies_disks else request.spec.pool_id


def _pool(report: NodeReport, pool_id: str) -> PoolReport | None:
    return next((pool for pool in report.pools if pool.pool_id == pool_id), None)
