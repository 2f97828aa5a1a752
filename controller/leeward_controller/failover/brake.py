"""When so much looks wrong that the observers are more likely wrong than the hosts. Pure.

The brake is pulled while more nodes look dead than a few, or while the controllers' own sight is not to be trusted. An
operator can release it for the nodes that were counted then: a further one pulls it again. A release outlasts a moment
in which the controllers were unwell, but not the cause for which it was given.
"""

from collections.abc import Iterable

from leeward_controller.domain.cluster import Brake
from leeward_controller.domain.node import NodeCondition
from leeward_controller.failover.model import (
    BrakePolicy,
    ClusterSnapshot,
    Decision,
    NodeSnapshot,
    PullBrake,
    ReleaseBrake,
)


def decide_brake(snapshot: ClusterSnapshot, policy: BrakePolicy) -> tuple[list[Decision], bool]:
    """What becomes of the brake, and whether evacuation is paused."""
    recorded = snapshot.brake
    dead = tuple(node.node for node in snapshot.nodes if _looks_dead(node))
    if snapshot.unwell:
        if recorded is not None and recorded.unwell:
            return [], True
        return [_pull_unwell(snapshot.unwell, dead, recorded)], True
    reason = _too_many(dead, snapshot.nodes, policy)
    if not reason:
        return [ReleaseBrake()] if recorded is not None else [], False
    if recorded is not None and recorded.release is not None and set(dead) <= set(recorded.nodes):
        again = PullBrake(reason, recorded.nodes, keeps_release=True)
        return [again] if recorded.unwell else [], False
    if recorded is not None and recorded.holds and not recorded.unwell and recorded.nodes == dead:
        return [], True
    return [PullBrake(reason, dead)], True


def _pull_unwell(reason: str, dead: tuple[str, ...], recorded: Brake | None) -> PullBrake:
    released = recorded is not None and recorded.release is not None
    nodes = recorded.nodes if recorded is not None and released else dead
    return PullBrake(reason, nodes, unwell=True, keeps_release=released)


def _looks_dead(node: NodeSnapshot) -> bool:
    return node.lease_missing_s is not None and _counts(node)


def _counts(node: NodeSnapshot) -> bool:
    """Whether its death would tell something of the cluster: not of one that is empty, and known to be worked on."""
    return node.condition is not NodeCondition.EVACUATED and (not node.in_maintenance or node.instances > 0)


def _too_many(dead: tuple[str, ...], nodes: Iterable[NodeSnapshot], policy: BrakePolicy) -> str:
    counted = sum(1 for node in nodes if _counts(node))
    if len(dead) > policy.more_than and len(dead) >= policy.at_least_share * counted:
        return f"{len(dead)} of {counted} nodes look dead at once ({', '.join(sorted(dead))})"
    return ""
