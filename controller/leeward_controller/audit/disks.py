"""Drift between the records and the folders of guests in pools."""

from collections.abc import Iterator

from leeward.agent.disk_files import KEPT_ROOT_DISK, MEMORY_FILE, RESCUE_DISK, ROOT_DISK, SEED_DISK
from leeward.agent.types import HeldGuest
from leeward_controller.audit.model import (
    Contents,
    DeleteDisk,
    DiskRemnant,
    DropRemnant,
    Finding,
    FindingKind,
    HeldPool,
    RaiseRunEpoch,
)
from leeward_controller.domain.instance import Instance, InstanceState


def disk_findings(contents: Contents) -> Iterator[Finding]:
    """Folders that no instance accounts for, instances without theirs, and files where they do not belong."""
    pools = contents.pools()
    for _, pool in sorted(pools.items()):
        for held in pool.inventory.guests:
            if held.uid not in contents.busy:
                yield from _judge_folder(contents, pools, pool, held)
    for instance in contents.settled():
        own = pools.get(instance.pool_id) if instance.node else None
        if own is not None:
            yield from _judge_instance(instance, own)


def _judge_folder(contents: Contents, pools: dict[str, HeldPool], pool: HeldPool, held: HeldGuest) -> Iterator[Finding]:
    pool_id, instance = pool.inventory.pool_id, contents.instances.get(held.uid)
    delete = DeleteDisk(pool.nodes[0], pool_id, held.uid, held.run_epoch, held.age_s)
    told = f"has a folder of {held.uid} with {', '.join(sorted(held.files)) or 'nothing in it'}"
    if instance is None:
        told += ", and no instance is recorded"
        yield contents.keeping(Finding(FindingKind.DISK_OF_NO_INSTANCE, f"pools/{pool_id}", told, delete), *pool.nodes)
        return
    if pool_id in _pools_of(instance):
        return
    where = f"pool {instance.pool_id}" if instance.node else "no pool"
    told += f", which is {instance.name}, whose disks are in {where}"
    why = _why_kept(pools, instance)
    repair = None if why else delete
    finding = Finding(FindingKind.DISK_IN_WRONG_POOL, f"pools/{pool_id}", told, repair, advice=why)
    yield contents.keeping(finding, *pool.nodes)


def _why_kept(pools: dict[str, HeldPool], instance: Instance) -> str:
    """Why a copy of an instance's disks is not to be deleted; empty when it can be."""
    if instance.node:
        own = pools.get(instance.pool_id)
        if own is None or not any(h.uid == instance.uid and ROOT_DISK in h.files for h in own.inventory.guests):
            return f"see to pool {instance.pool_id} first: this may be the only copy"
    return ""


def _pools_of(instance: Instance) -> set[str]:
    """Where an instance has disks; one that was resized keeps the old one where it was."""
    pools = {instance.pool_id} if instance.node else set()
    if instance.resize is not None:
        pools.add(instance.resize.pool_id)
    return pools


def _judge_instance(instance: Instance, pool: HeldPool) -> Iterator[Finding]:
    held = next((each for each in pool.inventory.guests if each.uid == instance.uid), None)
    if held is None or ROOT_DISK not in held.files:
        yield Finding(
            FindingKind.INSTANCE_WITHOUT_DISK,
            instance.name,
            f"its root disk is not in pool {instance.pool_id}",
            advice="rebuild it from an image or a backup, or delete it",
        )
        return
    state = instance.deletion.state_before if instance.deletion is not None else instance.state
    if state is InstanceState.SUSPENDED and MEMORY_FILE not in held.files:
        yield Finding(
            FindingKind.INSTANCE_WITHOUT_MEMORY,
            instance.name,
            f"it is SUSPENDED, but its memory is not in pool {instance.pool_id}, so it cannot be resumed",
            advice="reboot it hard: it then boots from its disk",
        )
    yield from _leftover_files(instance, state, pool, held)
    yield from _judge_epoch(instance, held)


def _leftover_files(instance: Instance, state: InstanceState, pool: HeldPool, held: HeldGuest) -> Iterator[Finding]:
    node = instance.node if instance.node in pool.nodes else pool.nodes[0]
    for file, remnant, belongs in (
        (KEPT_ROOT_DISK, DiskRemnant.KEPT_ROOT_DISK, instance.resize is not None),
        (RESCUE_DISK, DiskRemnant.RESCUE_DISK, instance.rescue is not None),
        (MEMORY_FILE, DiskRemnant.MEMORY, state is InstanceState.SUSPENDED),
    ):
        if file in held.files and not belongs:
            told = f"there is {file} beside its disk, while it is {instance.state}"
            yield Finding(FindingKind.LEFTOVER_FILE, instance.name, told, DropRemnant(node, instance.name, remnant))
    if SEED_DISK in held.files and instance.cloud_init is None:
        yield Finding(
            FindingKind.LEFTOVER_FILE,
            instance.name,
            f"there is {SEED_DISK} beside its disk, while it was launched without cloud-init",
            advice="delete the file by hand while the guest does not run",
        )


def _judge_epoch(instance: Instance, held: HeldGuest) -> Iterator[Finding]:
    ahead = held.run_epoch > instance.run_epoch
    elsewhere = bool(held.node) and held.node != instance.node and held.run_epoch == instance.run_epoch
    if not ahead and not elsewhere:
        return
    epoch = held.run_epoch if held.node == instance.node else held.run_epoch + 1
    yield Finding(
        FindingKind.RUN_EPOCH_AHEAD,
        instance.name,
        f"the right to run beside its disk is epoch {held.run_epoch} on nodes/{held.node}, while epoch "
        f"{instance.run_epoch} on nodes/{instance.node} is recorded: it can not be started",
        RaiseRunEpoch(instance.name, epoch),
    )
