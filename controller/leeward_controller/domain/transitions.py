"""The one table that says what can be done to an instance, from which state, and where it leads.

The API's checks, the page `docs/operations.md` and the test over every pair of action and state are made from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from leeward.errors import Locked, OperationRunning, Violation, WrongState
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import OperationType

_S = InstanceState
_O = OperationType


class Immediate(StrEnum):
    """What is done to an instance at once, without an operation."""

    UPDATE = "UPDATE"  # Change its labels, or whether it is restarted on failure.
    LOCK = "LOCK"  # Refuse every change by others than admins.
    UNLOCK = "UNLOCK"  # Allow changes again.
    GET_CONSOLE_LOG = "GET_CONSOLE_LOG"  # Read what its guest wrote to the serial console.
    ATTACH_CONSOLE = "ATTACH_CONSOLE"  # Talk to its guest over the serial console.
    LIST_EVENTS = "LIST_EVENTS"  # Read its history.


Action = OperationType | Immediate


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: what it promises, and `leads_to`, each state that it may start from with those that it may end in.

    `interrupts` are the operations that it ends when they are running. A `lock_checked` action is refused to others
    than admins while the instance is locked. One that `needs_node` is for an instance that has a place.
    """

    promise: str
    leads_to: Mapping[InstanceState, frozenset[InstanceState]]
    interrupts: frozenset[OperationType] = frozenset()
    lock_checked: bool = True
    needs_node: bool = True

    @property
    def allowed_from(self) -> frozenset[InstanceState]:
        """The states that it may start from."""
        return frozenset(self.leads_to)


def _to(target: InstanceState, *sources: InstanceState) -> dict[InstanceState, frozenset[InstanceState]]:
    return {source: frozenset({target}) for source in sources}


def _unchanged(*states: InstanceState) -> dict[InstanceState, frozenset[InstanceState]]:
    return {state: frozenset({state}) for state in states}


def _back(source: InstanceState, *before: InstanceState) -> dict[InstanceState, frozenset[InstanceState]]:
    return {source: frozenset(before)}


_ANY = tuple(state for state in _S if state is not _S.DELETED)
_IN_MEMORY = (_S.ACTIVE, _S.PAUSED, _S.RESCUED, _S.RESIZED)
_RETURNING = tuple(state for state in _ANY if state not in (_S.BUILDING, _S.PAUSED, _S.SOFT_DELETED))
_EVERY_OPERATION = frozenset(OperationType)

TABLE: dict[Action, Rule] = {
    _O.CREATE: Rule(
        "Placed, its image fetched, its disks made, its guest started; when it fails nothing is left on any node.",
        _to(_S.ACTIVE, _S.BUILDING),
        needs_node=False,
    ),
    _O.START: Rule("Boots it where it is.", _to(_S.ACTIVE, _S.STOPPED)),
    _O.STOP: Rule(
        "Asks the guest by ACPI, and ends it when the grace period is over.",
        _to(_S.STOPPED, _S.ACTIVE, _S.PAUSED, _S.ERROR),
    ),
    _O.REBOOT: Rule(
        "SOFT (from ACTIVE only) asks the guest, and becomes HARD when it does not react; HARD restarts it at once.",
        _to(_S.ACTIVE, _S.ACTIVE, _S.STOPPED, _S.PAUSED, _S.SUSPENDED, _S.ERROR),
    ),
    _O.PAUSE: Rule("Halts its processors; its memory stays.", _to(_S.PAUSED, _S.ACTIVE)),
    _O.UNPAUSE: Rule("Lets it run on.", _to(_S.ACTIVE, _S.PAUSED)),
    _O.SUSPEND: Rule(
        "Writes its memory into its pool and ends its process; on shared storage it outlives its node.",
        _to(_S.SUSPENDED, _S.ACTIVE),
    ),
    _O.RESUME: Rule("Brings it back from its memory, which is used once.", _to(_S.ACTIVE, _S.SUSPENDED)),
    _O.RESIZE: Rule(
        "Gives it another flavor, on its node or another; the old disk is kept. A disk never shrinks.",
        _to(_S.RESIZED, _S.ACTIVE, _S.STOPPED),
    ),
    _O.CONFIRM_RESIZE: Rule(
        "Keeps the new size and frees the old disk and place. Happens by itself when a time was set.",
        _back(_S.RESIZED, _S.ACTIVE, _S.STOPPED),
    ),
    _O.REVERT_RESIZE: Rule(
        "Goes back to the flavor, the disk and the node before.", _back(_S.RESIZED, _S.ACTIVE, _S.STOPPED)
    ),
    _O.SNAPSHOT: Rule(
        "Makes a standalone image as of one moment; a guest that runs is not stopped.",
        _unchanged(_S.ACTIVE, _S.STOPPED, _S.PAUSED, _S.SUSPENDED),
    ),
    _O.MIGRATE: Rule(
        "Stops it, moves its disks where they are not shared, and starts it there.", _unchanged(_S.ACTIVE, _S.STOPPED)
    ),
    _O.LIVE_MIGRATE: Rule(
        "Moves it while it runs, with its disks where they are not shared.", _unchanged(_S.ACTIVE, _S.PAUSED)
    ),
    _O.SHELVE: Rule(
        "Stops it and keeps its root disk as an image; its node is freed at once, or after a delay.",
        {
            state: frozenset({_S.SHELVED, _S.SHELVED_OFFLOADED})
            for state in (_S.ACTIVE, _S.STOPPED, _S.PAUSED, _S.SUSPENDED)
        },
    ),
    _O.OFFLOAD: Rule("Frees the node of a shelved one when its delay is over.", _to(_S.SHELVED_OFFLOADED, _S.SHELVED)),
    _O.UNSHELVE: Rule(
        "Brings it back, on any node once its own was freed.",
        _to(_S.ACTIVE, _S.SHELVED, _S.SHELVED_OFFLOADED),
        needs_node=False,
    ),
    _O.RESCUE: Rule(
        "Boots a rescue image with its own root disk as the second one, untouched.",
        _to(_S.RESCUED, _S.ACTIVE, _S.STOPPED, _S.ERROR),
    ),
    _O.UNRESCUE: Rule(
        "Boots its own disk again, if it was running before.", _back(_S.RESCUED, _S.ACTIVE, _S.STOPPED, _S.ERROR)
    ),
    _O.REBUILD: Rule(
        "Gives it a new root disk from an image or a backup; name, place, addresses and data disks stay.",
        {**_to(_S.ACTIVE, _S.ACTIVE, _S.ERROR, _S.RESCUED), **_unchanged(_S.STOPPED)},
    ),
    _O.EVACUATE: Rule(
        "With a fence proof for its node: has it elsewhere in the state that it had, from its shared disk.",
        _unchanged(*_ANY),
        interrupts=_EVERY_OPERATION - {_O.DELETE, _O.EVACUATE},
    ),
    _O.DELETE: Rule(
        "Ends whatever runs on it, then frees all that it holds on every node; or keeps it for the retention time.",
        {state: frozenset({_S.SOFT_DELETED, _S.DELETED}) for state in _ANY},
        interrupts=_EVERY_OPERATION - {_O.DELETE},
        needs_node=False,
    ),
    _O.UNDELETE: Rule("Brings it back as it was.", _back(_S.SOFT_DELETED, *_RETURNING), needs_node=False),
    _O.CRASH_DUMP: Rule(
        "Sends a non-maskable interrupt, by which its kernel writes its dump.",
        _unchanged(_S.ACTIVE, _S.RESCUED, _S.RESIZED),
    ),
    _O.RECOVER: Rule(
        "Starts it again as it was, after it was killed or its host was rebooted; done by the leader alone.",
        _unchanged(*_IN_MEMORY),
    ),
    Immediate.UPDATE: Rule(
        "Changes its labels, or whether it is restarted on failure.", _unchanged(*_ANY), needs_node=False
    ),
    Immediate.LOCK: Rule(
        "From now on others than admins are refused, with the reason given.", _unchanged(*_ANY), needs_node=False
    ),
    Immediate.UNLOCK: Rule(
        "Allows changes again; for admins, and for who locked it.",
        _unchanged(*_ANY),
        lock_checked=False,
        needs_node=False,
    ),
    Immediate.GET_CONSOLE_LOG: Rule(
        "Reads what its guest wrote to the serial console.", _unchanged(*_ANY), lock_checked=False
    ),
    Immediate.ATTACH_CONSOLE: Rule("Talks to its guest over the serial console.", _unchanged(*_IN_MEMORY)),
    Immediate.LIST_EVENTS: Rule(
        "Lists its history: who, what, when, how it ended, and its steps with their times.",
        _unchanged(*_ANY),
        lock_checked=False,
        needs_node=False,
    ),
}

SOFT_REBOOT_FROM = frozenset({_S.ACTIVE})


def check_lock(instance: Instance, wanted: Action, *, admin: bool) -> None:
    """Raises Locked, with the lock's reason, unless whoever asks is an admin or the action changes nothing."""
    if instance.lock is None or admin or not TABLE[wanted].lock_checked:
        return
    lock = instance.lock
    raise Locked(
        f"{instance.name} was locked by {lock.locker}: {lock.reason or 'no reason was given'}",
        metadata={"locker": lock.locker, "lock_reason": lock.reason},
        violations=[Violation("LOCK", instance.name, lock.reason or "no reason was given")],
        resource=instance.name,
    )


def check_state(instance: Instance, wanted: Action, *, narrowed: frozenset[InstanceState] | None = None) -> None:
    """Raises WrongState, with current and allowed states, where the table has no such row.

    `narrowed` limits the allowed states further (a soft reboot).
    """
    allowed = TABLE[wanted].allowed_from if narrowed is None else narrowed
    if instance.state in allowed:
        return
    names = ", ".join(sorted(allowed)) or "none"
    raise WrongState(
        f"{instance.name} is {instance.state}; {wanted} is allowed from {names}",
        metadata={"current_state": instance.state, "allowed_states": names},
        violations=[Violation("STATE", instance.name, f"is {instance.state}; allowed: {names}")],
        resource=instance.name,
    )


def check_node(instance: Instance, wanted: Action) -> None:
    """Raises WrongState (reason NO_NODE) for an action that needs a place when the instance has none."""
    if instance.node or not TABLE[wanted].needs_node:
        return
    why = f"it never came to run: {instance.fault}" if instance.fault else "it has no place"
    raise WrongState(
        f"{instance.name} is on no node ({why}), and {wanted} needs one",
        reason="NO_NODE",
        metadata={"current_state": instance.state},
        violations=[Violation("NODE", instance.name, "is on no node; it must be on one")],
        resource=instance.name,
    )


def check_allowed(
    instance: Instance,
    wanted: OperationType,
    *,
    running: OperationType | None,
    narrowed: frozenset[InstanceState] | None = None,
) -> bool:
    """Whether `wanted` may start now: True when it interrupts the running operation, False when nothing runs.

    Raises WrongState, or OperationRunning with the running operation's name.
    """
    check_state(instance, wanted, narrowed=narrowed)
    if running is None:
        check_node(instance, wanted)
        return False
    if running in TABLE[wanted].interrupts:
        return True
    raise OperationRunning(
        f"{instance.name} has {running} running as {instance.current_operation}; wait for it or cancel it first",
        metadata={"operation": instance.current_operation, "type": running},
        resource=instance.current_operation,
    )
