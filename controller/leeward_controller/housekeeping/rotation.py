"""Lets go of the backups that a newer one replaces. Their files go when no disk is based on them."""

import structlog

from leeward import keys
from leeward_controller.domain.backup import BackupPolicy, is_backup
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.operation import RebuildArguments, RescueArguments
from leeward_controller.operations.context import Surroundings
from leeward_controller.records import Commit, Stored
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_PER_TRANSACTION = 32


def surplus_of(view: ClusterView, policy: BackupPolicy, instance: str) -> list[Stored[Image]]:
    """The backups of this policy and instance beyond those to keep, newest first, that nothing uses."""
    backups = [s for s in view.images.values() if is_backup(s.value, policy=policy.name, instance=instance)]
    backups.sort(key=lambda stored: (stored.value.create_time, stored.key), reverse=True)
    older = backups[policy.keep_count :]
    used = _used_images(view) if older else frozenset()
    return [stored for stored in older if stored.value.name not in used]


async def rotate(surroundings: Surroundings, policy: BackupPolicy, instance: str, *, leader_epoch: int) -> None:
    """Remove the records of surplus backups. Raises Conflict, StoreUnavailable, StoreIndefinite."""
    surplus = surplus_of(surroundings.view, policy, instance)
    for start in range(0, len(surplus), _PER_TRANSACTION):
        commit = Commit().alive(keys.LEADER, leader_epoch)
        for stored in surplus[start : start + _PER_TRANSACTION]:
            commit.remove(stored)
        await surroundings.records.commit(commit)
    if surplus:
        log.info("backup.rotated", policy=policy.name, instance=instance, images=[s.value.name for s in surplus])


def _used_images(view: ClusterView) -> frozenset[str]:
    """The images that an instance is made of, or is about to be."""
    used: set[str] = set()
    for stored in view.instances.values():
        instance = stored.value
        used.add(instance.image)
        used |= {kept.image for kept in (instance.rescue, instance.shelf) if kept is not None}
    for operation in view.operations.values():
        arguments = operation.value.arguments
        if not operation.value.phase.ended and isinstance(arguments, RebuildArguments | RescueArguments):
            used.add(arguments.image)
    return frozenset(used)
