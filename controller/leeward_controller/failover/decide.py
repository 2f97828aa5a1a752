"""From a snapshot to decisions. Pure: this is where Leeward says who is dead, and it can be read on one page.

Safety rests on one inequality: a guest is started elsewhere only after the last moment at which its old node could
still have run it. A node's guard kills its guests when neither heartbeat was renewed for `lease_ttl_s`, counted from
when the last renewal was sent, and takes at most `guard_delay_s` for it. The etcd lease ends no earlier than
`lease_ttl_s` after that renewal was sent; the storage slot's silence is counted by observers from when they first saw
its last content, which is no earlier than when it was sent. So after

    lease gone for      guard_delay_s + margin_s             and
    slot silent for     lease_ttl_s + guard_delay_s + margin_s

nothing runs there any more, provided that the guard was armed.
"""

from collections.abc import Iterator

from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.failover.model import (
    AdoptReport,
    BrakePolicy,
    ClearProof,
    ClusterSnapshot,
    Decision,
    Evacuate,
    LeavePill,
    NodeSnapshot,
    PowerOff,
    PullBrake,
    RecordProof,
    Register,
    ReleaseBrake,
    SetCondition,
    Silence,
    Timing,
    TrimAllocation,
    WithdrawPill,
)

_C = NodeCondition
_DOUBTED = frozenset({_C.SUSPECT, _C.ISOLATED, _C.FENCING})
_OVER = frozenset({_C.FENCED, _C.EVACUATED})
_CAME_BACK = "it came back after its instances were moved; uncordon it to use it again"
_BACK_IN_MAINTENANCE = "it came back; it had been emptied before"


def decide(snapshot: ClusterSnapshot, *, timing: Timing, brake: BrakePolicy) -> list[Decision]:
    """All that is to be done now, in order; nothing when all is well."""
    decisions: list[Decision] = [Register(node) for node in snapshot.unregistered]
    braking = _brake_reason(snapshot, brake)
    if braking and not snapshot.braked:
        decisions.append(PullBrake(braking, tuple(n.node for n in snapshot.nodes if _looks_dead(n))))
    if snapshot.braked and not braking:
        decisions.append(ReleaseBrake())
    for node in snapshot.nodes:
        decisions.extend(_decide_node(node, timing=timing, braked=bool(braking)))
    return decisions


def _looks_dead(node: NodeSnapshot) -> bool:
    return node.lease_missing_s is not None and _counts(node)


def _counts(node: NodeSnapshot) -> bool:
    """Whether its death would tell something of the cluster: not of one that is empty, and known to be worked on."""
    return node.condition is not _C.EVACUATED and (not node.in_maintenance or node.instances > 0)


def _brake_reason(snapshot: ClusterSnapshot, policy: BrakePolicy) -> str:
    if snapshot.unwell:
        return snapshot.unwell
    dead = [node.node for node in snapshot.nodes if _looks_dead(node)]
    counted = [node for node in snapshot.nodes if _counts(node)]
    if len(dead) > policy.more_than and len(dead) >= policy.at_least_share * len(counted):
        return f"{len(dead)} of {len(counted)} nodes look dead at once ({', '.join(sorted(dead))})"
    return ""


def _decide_node(node: NodeSnapshot, *, timing: Timing, braked: bool) -> Iterator[Decision]:
    if node.proof is not None:
        yield from _decide_fenced(node, braked=braked)
    elif node.lease_missing_s is None:
        yield from _decide_alive(node)
    else:
        yield from _decide_missing(node, node.lease_missing_s, timing=timing, braked=braked)


def _decide_alive(node: NodeSnapshot) -> Iterator[Decision]:
    if node.held_pill:
        yield WithdrawPill(node.node, node.held_pill)
    if node.lease_boot_id != node.known_boot_id:
        yield RecordProof(
            node.node,
            node.known_boot_id,
            ProofKind.NEW_BOOT,
            f"the node came back with boot id {node.lease_boot_id}",
        )
        if node.condition is _C.QUARANTINED:
            yield SetCondition(node.node, _C.QUARANTINED, "it was rebooted; uncordon it to use it", adopt_report=True)
        else:
            yield SetCondition(node.node, _C.READY, "it was rebooted; its guests are started again", adopt_report=True)
    elif node.condition in _DOUBTED:
        yield SetCondition(node.node, _C.READY, "its heartbeat is back", adopt_report=True)
    elif node.condition in _OVER:
        # A leader died between dropping the proof and saying so.
        yield _came_back(node)
    elif node.report_changed:
        yield AdoptReport(node.node)


def _decide_missing(node: NodeSnapshot, missing_s: float, *, timing: Timing, braked: bool) -> Iterator[Decision]:
    if node.condition not in _DOUBTED:
        yield SetCondition(node.node, _C.SUSPECT, "its etcd lease is lost")
        return
    if missing_s < 0:
        return
    silence = node.silence
    if silence is None:
        if node.can_power_off and not node.powering_off:
            yield PowerOff(node.node, node.known_boot_id)
        return
    if silence.boot_id != node.known_boot_id:
        evidence = f"its storage slot was written by boot {silence.boot_id}"
        yield RecordProof(node.node, node.known_boot_id, ProofKind.NEW_BOOT, evidence)
        return
    if silence.seconds < timing.slot_fresh_s:
        yield from _decide_isolated(node, silence, braked=braked)
        return
    if node.condition is not _C.FENCING:
        yield SetCondition(node.node, _C.FENCING, "its etcd lease and its storage heartbeat are lost")
    if node.can_power_off and not node.powering_off:
        yield PowerOff(node.node, node.known_boot_id)
    yield from _proof_by_silence(node, missing_s, timing=timing)


def _decide_isolated(node: NodeSnapshot, silence: Silence, *, braked: bool) -> Iterator[Decision]:
    """Its guests are legitimate while the slot beats. Only by its own word, in the slot, is it known that they ended.

    The node's agent gives it after its guard has found none left, so a pill needs an armed guard as silence does.
    """
    if node.condition is not _C.ISOLATED:
        yield SetCondition(node.node, _C.ISOLATED, "its etcd lease is lost, its storage heartbeat beats")
    elif node.left_pill and node.left_pill in silence.acknowledged:
        evidence = f"its agent took the poison pill {node.left_pill}, as seen by {', '.join(silence.observers)}"
        yield RecordProof(node.node, node.known_boot_id, ProofKind.POISON_PILL, evidence)
    elif not node.left_pill and node.guard_armed and (node.fence_asked or (node.isolated_for_long and not braked)):
        yield LeavePill(node.node, node.known_boot_id)


def _proof_by_silence(node: NodeSnapshot, missing_s: float, *, timing: Timing) -> Iterator[Decision]:
    silence = node.silence
    if silence is None or not node.guard_armed:
        return
    lease_needs_s = node.guard_delay_s + timing.margin_s
    slot_needs_s = node.lease_ttl_s + node.guard_delay_s + timing.margin_s
    if missing_s >= lease_needs_s and silence.seconds >= slot_needs_s:
        evidence = (
            f"etcd lease gone for {missing_s:.2f} s (needed {lease_needs_s:.2f}), storage slot silent for "
            f"{silence.seconds:.2f} s (needed {slot_needs_s:.2f}) as seen by {', '.join(silence.observers)}; "
            "its guard was armed"
        )
        yield RecordProof(node.node, node.known_boot_id, ProofKind.SILENCE, evidence)


def _decide_fenced(node: NodeSnapshot, *, braked: bool) -> Iterator[Decision]:
    rebooted = node.lease_missing_s is None and node.lease_boot_id != node.known_boot_id
    if rebooted and node.waiting:
        yield SetCondition(
            node.node, _C.READY, "it was rebooted; what is left on it is started again", adopt_report=True
        )
        return
    is_told = node.condition in _OVER or (node.condition is _C.QUARANTINED and node.lease_missing_s is None)
    if not is_told:
        yield SetCondition(node.node, _C.FENCED, f"proved by {node.proof}")
    is_back = node.lease_missing_s is None
    # What is still on a node that is back stays: its disks may be nowhere else, or no other node has had room for it.
    is_over = is_told and node.instances <= (node.idle if is_back else 0)
    if node.waiting and not braked and not is_over:
        yield Evacuate(node.node, node.known_boot_id, node.waiting)
    if not is_over:
        return
    if is_back:
        yield TrimAllocation(node.node)
        yield ClearProof(node.node, node.known_boot_id)
        yield _came_back(node)
    elif node.condition is not _C.EVACUATED:
        yield TrimAllocation(node.node)
        yield SetCondition(node.node, _C.EVACUATED, "it is fenced and none of its instances is left on it")


def _came_back(node: NodeSnapshot) -> SetCondition:
    """What becomes of a node that is back, and that nothing leaves any more; one emptied on purpose left nothing."""
    if node.in_maintenance:
        return SetCondition(node.node, _C.READY, _BACK_IN_MAINTENANCE, adopt_report=True)
    return SetCondition(node.node, _C.QUARANTINED, _CAME_BACK, adopt_report=True)
