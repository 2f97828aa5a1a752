"""What has to be accepted and what refused, by the transition table alone, and where a success may lead."""

from dataclasses import dataclass

from leeward.errors import Code, LeewardError, Unavailable
from leeward_controller.domain.instance import Instance, InstanceState
from leeward_controller.domain.operation import OperationType
from leeward_controller.domain.transitions import TABLE, Action, Immediate

ROOM = frozenset({"NO_NODE_FITS", "NODE_UNFIT"})

# What may be wrong with a request although its instance is in a state for it.
_OF_ITS_OWN: dict[Action, frozenset[str]] = {
    OperationType.CREATE: ROOM | {"ALREADY_EXISTS", "QUOTA_EXCEEDED"},
    OperationType.RESIZE: ROOM | {"INVALID_ARGUMENT", "QUOTA_EXCEEDED"},
    OperationType.MIGRATE: ROOM,
    OperationType.LIVE_MIGRATE: ROOM,
    OperationType.UNSHELVE: ROOM | {"NOT_OFFLOADED"},
    OperationType.EVACUATE: ROOM | {"NOT_FENCED", "NO_NODE"},  # The table asks for a node only when nothing runs.
    OperationType.SHELVE: frozenset({"HAS_DATA_DISKS"}),
    OperationType.SNAPSHOT: frozenset({"ALREADY_EXISTS"}),
    OperationType.REBUILD: frozenset({"INVALID_ARGUMENT"}),
    Immediate.GET_CONSOLE_LOG: frozenset({"NOT_FOUND"}),  # Nothing was written to it yet.
    Immediate.ATTACH_CONSOLE: frozenset({"NOT_FOUND", "WRONG_STATE", "HYPERVISOR"}),  # It has just ended.
}
_RUNS_BESIDE = frozenset(Immediate)


@dataclass(frozen=True, slots=True)
class Version:
    """An instance as it stood at one moment, and what was running on it; None: there was none."""

    instance: Instance | None
    running: OperationType | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call has to be refused."""

    code: Code
    reason: str


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for what. `soft` narrows a reboot to the states from which a guest can be asked.

    A lock said again in the same words, `lock_reason`, is no change, and refused to nobody who said it.
    """

    wanted: Action
    principal: str
    admin: bool
    soft: bool = False
    lock_reason: str = ""


def refusal_of(version: Version, asking: Asking) -> Refusal | None:
    """How the table has this call refused; None when it has it accepted."""
    instance, wanted = version.instance, asking.wanted
    if wanted is OperationType.CREATE:
        return None
    if instance is None:
        return Refusal(Code.NOT_FOUND, "NOT_FOUND")
    rule, lock = TABLE[wanted], instance.lock
    if wanted is Immediate.UNLOCK and lock is not None and not asking.admin and lock.locker != asking.principal:
        return Refusal(Code.PERMISSION_DENIED, "NOT_LOCKER")
    again = lock is not None and (lock.locker, lock.reason) == (asking.principal, asking.lock_reason)
    if lock is not None and rule.lock_checked and not asking.admin and not (wanted is Immediate.LOCK and again):
        return Refusal(Code.FAILED_PRECONDITION, "INSTANCE_LOCKED")
    allowed = {InstanceState.ACTIVE} if asking.soft else rule.leads_to
    if instance.state not in allowed:
        return Refusal(Code.FAILED_PRECONDITION, "WRONG_STATE")
    if version.running is not None and wanted not in _RUNS_BESIDE:
        return None if version.running in rule.interrupts else Refusal(Code.ABORTED, "OPERATION_RUNNING")
    if rule.needs_node and not instance.node:
        return Refusal(Code.FAILED_PRECONDITION, "NO_NODE")
    return None


def judge(versions: list[Version], asking: Asking, refused: LeewardError | None) -> str:
    """What is wrong with an answer, given all that the instance was while it was made; empty when it is right."""
    verdicts = {refusal_of(version, asking) for version in versions}
    if refused is None:
        if None in verdicts:
            return ""
        return f"{asking.wanted} was accepted, which has to be refused: {verdicts} ({_told(versions)})"
    if isinstance(refused, Unavailable) or refused.specific_reason == "CONFLICT":
        return ""
    found = Refusal(refused.code, refused.specific_reason)
    if found in verdicts:
        return ""
    if None in verdicts and found.reason in _OF_ITS_OWN.get(asking.wanted, frozenset()):
        return ""
    wanted = "accepted" if verdicts == {None} else f"one of {verdicts}"
    return f"{asking.wanted} was refused with {found} ({refused.message}), but had to be {wanted} ({_told(versions)})"


def wrong_end(
    wanted: OperationType, *, sources: set[InstanceState], end: InstanceState, succeeded: bool, committed: bool
) -> str:
    """What is wrong with the state in which an operation left its instance; empty when it is right.

    `sources` are the states that it may have started from: one, unless it waited for the end of another one.
    """
    table = TABLE[wanted].leads_to
    reached = {target for source in sources if source in table for target in table[source]}
    if wanted is OperationType.CREATE:
        allowed = reached if succeeded else {InstanceState.ERROR, InstanceState.DELETED}
    elif succeeded:
        allowed = reached
    else:
        allowed = sources | reached if committed else sources
    if end in allowed:
        return ""
    how = "succeeded" if succeeded else "failed"
    return f"{wanted} {how} from {_names(sources)} and left {end}; allowed: {_names(allowed)}"


def _names(states: set[InstanceState]) -> str:
    return ", ".join(sorted(states))


def _told(versions: list[Version]) -> str:
    told = []
    for version in versions:
        instance = version.instance
        if instance is None:
            told.append("gone")
        else:
            told.append(f"{instance.state} on {instance.node or 'no node'} with {version.running or 'nothing'} running")
    return "; then ".join(told)
