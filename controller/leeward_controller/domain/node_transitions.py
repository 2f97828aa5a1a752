"""What may follow on what for a node, and what can be done to it; nothing else decides that.

A node's condition is what failover finds, its duty is what operators want, and neither waits for the other: a node that
dies while it is drained, or in maintenance, is fenced and evacuated as any other, and has its duty still when it is
back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from leeward.errors import OperationRunning, Violation, WrongState
from leeward_controller.domain.node import Node, NodeCondition, NodeDuty
from leeward_controller.domain.operation import OperationType

_C = NodeCondition
_D = NodeDuty
_O = OperationType

_DOUBTED = frozenset({_C.SUSPECT, _C.ISOLATED, _C.FENCING})

CONDITIONS: Mapping[NodeCondition, frozenset[NodeCondition]] = {
    _C.READY: frozenset({_C.SUSPECT, _C.FENCED}),
    _C.SUSPECT: frozenset({_C.READY, _C.ISOLATED, _C.FENCING, _C.FENCED}),
    _C.ISOLATED: frozenset({_C.READY, _C.FENCING, _C.FENCED}),
    _C.FENCING: frozenset({_C.READY, _C.ISOLATED, _C.FENCED}),
    # Once the proof of a boot that is back has been dropped, its heartbeat can be lost before the condition says so.
    _C.FENCED: frozenset({_C.EVACUATED, _C.QUARANTINED, _C.READY, _C.SUSPECT}),
    _C.EVACUATED: frozenset({_C.QUARANTINED, _C.READY, _C.SUSPECT}),
    _C.QUARANTINED: frozenset({_C.READY, _C.SUSPECT, _C.FENCED}),
}
"""The conditions that may follow on each; one may always be told anew, with another reason."""

DUTIES: Mapping[NodeDuty, frozenset[NodeDuty]] = {
    _D.IN_SERVICE: frozenset({_D.CORDONED, _D.DRAINING}),
    _D.CORDONED: frozenset({_D.IN_SERVICE, _D.DRAINING}),
    _D.DRAINING: frozenset({_D.IN_SERVICE, _D.CORDONED, _D.MAINTENANCE}),
    _D.MAINTENANCE: frozenset({_D.IN_SERVICE, _D.DRAINING}),
}


@dataclass(frozen=True, slots=True)
class NodeRule:
    """One row: the conditions from which an operation on a node may start, and the running ones that it ends."""

    allowed_from: frozenset[NodeCondition]
    interrupts: frozenset[OperationType] = frozenset()


NODE_TABLE: Mapping[OperationType, NodeRule] = {
    _O.DRAIN_NODE: NodeRule(frozenset({_C.READY}), interrupts=frozenset({_O.BRING_BACK})),
    _O.BRING_BACK: NodeRule(frozenset({_C.READY, _C.QUARANTINED})),
    _O.DRILL_NODE: NodeRule(frozenset({_C.READY})),
    _O.FENCE_NODE: NodeRule(frozenset(CONDITIONS), interrupts=frozenset({_O.DRAIN_NODE, _O.BRING_BACK, _O.DRILL_NODE})),
    _O.REMOVE_NODE: NodeRule(_DOUBTED | {_C.EVACUATED}),
}


def with_condition(node: Node, condition: NodeCondition, reason: str, *, now: datetime) -> Node:
    """The node in another condition, or in the same for another reason, since when it was in it.

    Raises WrongState, with the node's story, where that cannot follow.
    """
    if condition is not node.condition and condition not in CONDITIONS[node.condition]:
        raise _wrong_state(node, f"to become {condition}", current=node.condition, allowed=CONDITIONS[node.condition])
    since = node.condition_time if condition is node.condition else now
    return replace(node, condition=condition, reason=reason, condition_time=since)


def with_duty(node: Node, duty: NodeDuty, *, reason: str) -> Node:
    """The node with another duty. Raises WrongState, with the node's story, where that cannot follow."""
    if duty is not node.duty and duty not in DUTIES[node.duty]:
        raise _wrong_state(node, f"to be {duty}", current=node.duty, allowed=DUTIES[node.duty])
    return replace(node, duty=duty, cordon_reason="" if duty is _D.IN_SERVICE else reason)


def check_node_allowed(node: Node, wanted: OperationType, *, running: OperationType | None) -> bool:
    """Whether `wanted` may start now: True when it interrupts the running operation, False when nothing runs.

    Raises WrongState, or OperationRunning with the running operation's name.
    """
    rule = NODE_TABLE[wanted]
    if node.condition not in rule.allowed_from:
        raise _wrong_state(node, f"for {wanted}", current=node.condition, allowed=rule.allowed_from)
    if running is None:
        return False
    if running in rule.interrupts:
        return True
    raise running_on(node, running)


def running_on(node: Node, running: OperationType) -> OperationRunning:
    """That something else is going on with a node."""
    return OperationRunning(
        f"{node.name} has {running} running as {node.current_operation}; wait for it or cancel it first",
        metadata={"operation": node.current_operation, "type": running},
        resource=node.current_operation,
    )


def _wrong_state(node: Node, wanted: str, *, current: str, allowed: Iterable[str]) -> WrongState:
    names = ", ".join(sorted(allowed)) or "none"
    since = f"{node.condition_time:%Y-%m-%d %H:%M:%SZ}"
    duty = f", {node.duty} ({node.cordon_reason or 'no reason was given'})" if node.cordoned else ""
    return WrongState(
        f"{node.name} is {node.condition} since {since} ({node.reason}){duty}; {wanted} it would have to be {names}",
        metadata={"current_state": current, "allowed_states": names},
        violations=[Violation("STATE", node.name, f"is {current}; allowed: {names}")],
        resource=node.name,
    )
