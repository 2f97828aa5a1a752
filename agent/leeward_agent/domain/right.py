"""The right to run a guest, as recorded beside its disk. Pure."""

from leeward.agent.types import GuestSpec, GuestState, GuestStatus
from leeward.errors import StaleRunEpoch
from leeward_agent.storage.port import RunEpochRecord


def check_right(spec: GuestSpec, record: RunEpochRecord | None, *, node: str) -> None:
    """Raises StaleRunEpoch unless the record says that `node` may run the guest with the epoch of `spec`."""
    if record is None:
        raise StaleRunEpoch(f"no run epoch is recorded beside the disk of guest {spec.uid}: claim it first")
    if record.epoch != spec.run_epoch or record.node != node:
        raise StaleRunEpoch(
            f"guest {spec.uid} may be run by {record.node} with epoch {record.epoch}, not by {node} with epoch "
            f"{spec.run_epoch}",
            metadata={"epoch": str(record.epoch), "node": record.node},
        )


def has_lost_right(status: GuestStatus, record: RunEpochRecord | None, *, node: str) -> bool:
    """Whether what this host holds of the guest is a leftover: the right has moved to another node since.

    A guest that has just arrived by migration is none: the record still names its source, with the epoch by which the
    guest runs. Nor is one that moves at this moment.
    """
    if record is None or record.node == node or status.migrating or status.state is GuestState.ABSENT:
        return False
    return record.epoch > status.run_epoch
