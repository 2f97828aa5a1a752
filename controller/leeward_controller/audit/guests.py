"""Drift between the records and what hosts run, know, and keep in their agents' folders."""

from collections.abc import Iterator

from leeward.agent.types import GuestState, GuestStatus, Inventory, StopCause
from leeward_controller.audit.model import Contents, Finding, FindingKind, RemoveGuest
from leeward_controller.domain.instance import Instance, InstanceState

_IN_MEMORY = frozenset({GuestState.RUNNING, GuestState.PAUSED})


def guest_findings(contents: Contents) -> Iterator[Finding]:
    """Guests where they should not be, guests that are not as they are meant to be, and what they left behind."""
    for node, inventory in sorted(contents.inventories.items()):
        for status in inventory.guests:
            if status.uid not in contents.busy:
                for finding in _judge(node, status, contents.instances.get(status.uid)):
                    yield finding if status.state in _IN_MEMORY else contents.keeping(finding, node)
        yield from _absent(contents, node, inventory)
        yield from _leftovers(contents, node, inventory)


def _judge(node: str, status: GuestStatus, instance: Instance | None) -> Iterator[Finding]:
    alive, remove = status.state in _IN_MEMORY, RemoveGuest(node, status.uid)
    if instance is None:
        told = f"guest {status.name or status.uid} ({status.uid}) is {status.state} there, and no instance is recorded"
        yield Finding(FindingKind.GUEST_OF_NO_INSTANCE, f"nodes/{node}", told, remove)
    elif instance.node != node:
        kind = FindingKind.GUEST_ON_WRONG_NODE if alive else FindingKind.DEFINITION_ON_WRONG_NODE
        where = f"nodes/{instance.node}" if instance.node else "no node"
        what = f"is {status.state}" if alive else "is still defined"
        yield Finding(kind, instance.name, f"its guest {what} on nodes/{node}, while it is recorded on {where}", remove)
    elif alive and instance.wanted_guest is GuestState.STOPPED:
        yield Finding(
            FindingKind.GUEST_RUNS_UNWANTED,
            instance.name,
            f"its guest is {status.state} on nodes/{node}, while the instance is {_state(instance)}",
            advice="shut the guest down from inside, or delete the instance; a STOPPED one can also be started",
        )
    elif not alive and instance.wanted_guest is not GuestState.STOPPED and not _stays_down(instance, status):
        yield _not_running(instance)


def _stays_down(instance: Instance, status: GuestStatus) -> bool:
    """A rescue system that shut itself down is left so."""
    return instance.state is InstanceState.RESCUED and status.stop_cause is StopCause.GUEST


def _absent(contents: Contents, node: str, inventory: Inventory) -> Iterator[Finding]:
    known = {status.uid for status in inventory.guests}
    for instance in contents.settled():
        wanted = instance.wanted_guest is not GuestState.STOPPED
        if instance.node == node and wanted and instance.uid not in known:
            yield _not_running(instance)


def _not_running(instance: Instance) -> Finding:
    return Finding(
        FindingKind.GUEST_NOT_RUNNING,
        instance.name,
        f"its guest does not run on nodes/{instance.node}, while the instance is {_state(instance)}",
        advice="the leader starts it again within seconds; its events tell why that fails",
    )


def _leftovers(contents: Contents, node: str, inventory: Inventory) -> Iterator[Finding]:
    for kind, what, uids in (
        (FindingKind.SOCKET_OF_NO_GUEST, "a console socket", inventory.sockets),
        (FindingKind.CONSOLE_LOG_OF_NO_GUEST, "a console log", inventory.console_logs),
    ):
        for uid in uids:
            instance = contents.instances.get(uid)
            if uid in contents.busy or (instance is not None and instance.node == node):
                continue
            whose = f"{instance.name}, which is not on it" if instance is not None else f"{uid}, which does not exist"
            yield contents.keeping(
                Finding(kind, f"nodes/{node}", f"has {what} of {whose}", RemoveGuest(node, uid)), node
            )


def _state(instance: Instance) -> str:
    kept = instance.resize
    return f"{instance.state} ({kept.state_before} before)" if kept is not None else instance.state.value
