"""What one host has of guests that live elsewhere or are deleted. Pure, from what an audit of that host gathers."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from leeward.agent.types import GuestState, GuestStatus, HeldGuest, Inventory
from leeward_controller.audit.model import Contents
from leeward_controller.domain.instance import Instance

_IN_MEMORY = frozenset({GuestState.RUNNING, GuestState.PAUSED})


class LeftoverKind(StrEnum):
    """What is left of a guest."""

    GUEST_IN_MEMORY = "GUEST_IN_MEMORY"  # It is in memory.
    DEFINITION = "DEFINITION"  # It is defined and does not run.
    DEFINITION_PUT_ASIDE = "DEFINITION_PUT_ASIDE"  # Its definition is kept, and the host's hypervisor forgot it.
    DISKS = "DISKS"  # A folder with disks in a pool of the host's own.
    CONSOLE_SOCKET = "CONSOLE_SOCKET"  # Its console socket.
    CONSOLE_LOG = "CONSOLE_LOG"  # Its console log.


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something left of a guest: what, whose (`instance` and `current_node` are empty where nobody knows), its fate.

    `fate` tells what becomes of it once the node is released from quarantine, or now where it is in none.
    """

    kind: LeftoverKind
    instance_uid: str
    instance: str
    exists: bool
    current_node: str
    explanation: str
    fate: str


def leftovers_on(node: str, contents: Contents, *, own_pools: frozenset[str]) -> tuple[Leftover, ...]:
    """All that `node` has, by instance. `own_pools` are those that no other node sees.

    What an operation is working on is on its way, and left out.
    """
    inventory = contents.inventories[node]
    found = [*_guests(node, contents, inventory), *_disks(node, contents, inventory, own_pools)]
    found += [*_put_aside(node, contents, inventory), *_files(node, contents, inventory)]
    return tuple(sorted(found, key=lambda each: (each.instance, each.instance_uid, each.kind)))


def _guests(node: str, contents: Contents, inventory: Inventory) -> Iterator[Leftover]:
    for status in inventory.guests:
        if status.uid in contents.busy or status.state is GuestState.ABSENT or _is_home(contents, status.uid, node):
            continue
        yield _guest(contents, status)


def _guest(contents: Contents, status: GuestStatus) -> Leftover:
    if status.state in _IN_MEMORY:
        return _leftover(
            LeftoverKind.GUEST_IN_MEMORY,
            contents,
            status.uid,
            name=status.name,
            explanation=f"its guest is {status.state} with epoch {status.run_epoch}",
            fate="its agent ends it where the right to run it has moved; else audit --repair does",
        )
    known = status.uid in contents.instances
    fate = (
        "forgotten by itself" if known else "forgotten by itself when it is known to be deleted, else by audit --repair"
    )
    return _leftover(
        LeftoverKind.DEFINITION,
        contents,
        status.uid,
        name=status.name,
        explanation=f"it is defined there and {status.state}, with epoch {status.run_epoch}",
        fate=fate,
    )


def _put_aside(node: str, contents: Contents, inventory: Inventory) -> Iterator[Leftover]:
    """What is kept for people is told even of a guest that has come back since."""
    for kept in inventory.put_aside:
        yield _leftover(
            LeftoverKind.DEFINITION_PUT_ASIDE,
            contents,
            kept.uid,
            name=kept.name,
            explanation=f"epoch {kept.run_epoch} of it was ended there at {kept.time:%Y-%m-%d %H:%M:%SZ}, because "
            f"nodes/{kept.holder} had the right to run it",
            fate="kept in the agent's state directory, until somebody deletes it there",
        )


def _disks(node: str, contents: Contents, inventory: Inventory, own_pools: frozenset[str]) -> Iterator[Leftover]:
    for pool in inventory.pools:
        if pool.pool_id not in own_pools:
            continue
        for held in pool.guests:
            if held.uid not in contents.busy and not _has_disks_in(contents.instances.get(held.uid), pool.pool_id):
                yield _disk(contents, pool.pool_id, held)


def _disk(contents: Contents, pool_id: str, held: HeldGuest) -> Leftover:
    return _leftover(
        LeftoverKind.DISKS,
        contents,
        held.uid,
        explanation=f"pool {pool_id} has {', '.join(sorted(held.files)) or 'an empty folder'} of it",
        fate="kept, until audit --repair deletes it",
    )


def _files(node: str, contents: Contents, inventory: Inventory) -> Iterator[Leftover]:
    for kind, what, uids in (
        (LeftoverKind.CONSOLE_SOCKET, "its console socket", inventory.sockets),
        (LeftoverKind.CONSOLE_LOG, "its console log", inventory.console_logs),
    ):
        for uid in uids:
            if uid not in contents.busy and not _is_home(contents, uid, node):
                yield _leftover(kind, contents, uid, explanation=f"{what} is there", fate="deleted by audit --repair")


def _is_home(contents: Contents, uid: str, node: str) -> bool:
    instance = contents.instances.get(uid)
    return instance is not None and instance.node == node


def _has_disks_in(instance: Instance | None, pool_id: str) -> bool:
    """Whether the instance is meant to have disks there; one that was resized keeps the old one where it was."""
    if instance is None:
        return False
    kept = instance.resize
    return (bool(instance.node) and instance.pool_id == pool_id) or (kept is not None and kept.pool_id == pool_id)


def _leftover(
    kind: LeftoverKind, contents: Contents, uid: str, *, explanation: str, fate: str, name: str = ""
) -> Leftover:
    instance = contents.instances.get(uid)
    return Leftover(
        kind=kind,
        instance_uid=uid,
        instance=instance.name if instance is not None else name,
        exists=instance is not None,
        current_node=instance.node if instance is not None else "",
        explanation=explanation,
        fate=fate,
    )
