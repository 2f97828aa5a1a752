"""The one table that says which operation is allowed from which state, and where it leads."""

from dataclasses import dataclass

from leeward.errors import OperationRunning, Violation, WrongState
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import OperationType

_S = InstanceState
_ANY = frozenset(_S) - {_S.DELETED}


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: the states it may start from, the state it ends in (None: unchanged), and whether it may interrupt."""

    allowed_from: frozenset[InstanceState]
    leads_to: InstanceState | None
    interrupts: frozenset[OperationType] = frozenset()


_ALL_OPERATIONS = frozenset(OperationType)

TABLE: dict[OperationType, Rule] = {
    OperationType.CREATE: Rule(frozenset(), _S.ACTIVE),
    OperationType.START: Rule(frozenset({_S.STOPPED}), _S.ACTIVE),
    OperationType.STOP: Rule(frozenset({_S.ACTIVE, _S.PAUSED, _S.ERROR}), _S.STOPPED),
    OperationType.REBOOT: Rule(frozenset({_S.ACTIVE, _S.STOPPED, _S.PAUSED, _S.SUSPENDED, _S.ERROR}), _S.ACTIVE),
    OperationType.DELETE: Rule(_ANY, _S.DELETED, interrupts=_ALL_OPERATIONS - {OperationType.DELETE}),
    OperationType.LIVE_MIGRATE: Rule(frozenset({_S.ACTIVE, _S.PAUSED}), None),
    OperationType.EVACUATE: Rule(
        _ANY, None, interrupts=_ALL_OPERATIONS - {OperationType.DELETE, OperationType.EVACUATE}
    ),
}

SOFT_REBOOT_FROM = frozenset({_S.ACTIVE})


def check_allowed(
    instance: Instance,
    wanted: OperationType,
    *,
    running: OperationType | None,
    narrowed: frozenset[InstanceState] | None = None,
) -> bool:
    """Whether `wanted` may start now: True when it interrupts the running operation, False when nothing runs.

    `narrowed` limits the allowed states further (a soft reboot). Raises WrongState with current and allowed states, or
    OperationRunning with the running operation's name.
    """
    rule = TABLE[wanted]
    allowed = rule.allowed_from if narrowed is None else narrowed
    if instance.state not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        raise WrongState(
            f"{instance.name} is {instance.state}; {wanted} is allowed from {names}",
            metadata={"current_state": instance.state, "allowed_states": names},
            violations=[Violation("STATE", instance.name, f"is {instance.state}; allowed: {names}")],
            resource=instance.name,
        )
    if running is None:
        return False
    if running in rule.interrupts:
        return True
    raise OperationRunning(
        f"{instance.name} has {running} running as {instance.current_operation}; wait for it or cancel it first",
        metadata={"operation": instance.current_operation, "type": running},
        resource=instance.current_operation,
    )
