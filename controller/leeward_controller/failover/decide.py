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
from dataclasses import dataclass

from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.failover.brake import decide_brake
from leeward_controller.failover.model import (
    AdoptReport,
    Arm,
    BrakePolicy,
    ClearProof,
    ClusterSnapshot,
    Decision,
    Evacuate,
    LeavePill,
    NodeSnapshot,
    PowerOff,
    RecordProof,
    Register,
    SetCondition,
    Silence,
    Timing,
    TrimAllocation,
    WithdrawPill,
)
from leeward_controller.failover.stuck import request_for_help, request_for_help_with_isolated, slot_needs_s

_C = NodeCondition
_DOUBTED = frozenset({_C.SUSPECT, _C.ISOLATED, _C.FENCING})
_OVER = frozenset({_C.FENCED, _C.EVACUATED})
_CAME_BACK = "it came back after it was fenced; uncordon it to use it again"
_BACK_IN_MAINTENANCE = "it came back; it had been emptied before"


def decide(snapshot: ClusterSnapshot, *, timing: Timing, brake: BrakePolicy) -> list[Decision]:
    """All that is to be done now, in order; nothing when all is well."""
    decisions: list[Decision] = [Register(node) for node in snapshot.unregistered]
    if snapshot.disarm is not None and snapshot.disarm_left_s <= 0:
        # It still counts now: a look from which it is gone is where fencing begins again.
        decisions.append(Arm(snapshot.disarm))
    disarmed = snapshot.disarm is not None
    of_brake, braked = decide_brake(snapshot, brake)
    decisions += of_brake
    for node in snapshot.nodes:
        allowed = _Allowed(fence=node.fence_asked or not disarmed, move=not disarmed and not braked)
        decisions.extend(_decide_node(node, timing=timing, allowed=allowed))
    return decisions


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What may be done to a node that looks dead.

    `fence`: cut its power, and take its silence for a proof. `move`: have its instances elsewhere, unasked.
    """

    fence: bool
    move: bool


def _decide_node(node: NodeSnapshot, *, timing: Timing, allowed: _Allowed) -> Iterator[Decision]:
    if node.proof is not None:
        yield from _decide_fenced(node, allowed=allowed)
    elif node.lease_missing_s is None:
        yield from _decide_alive(node)
    else:
        yield from _decide_missing(node, node.lease_missing_s, timing=timing, allowed=allowed)


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


def _decide_missing(node: NodeSnapshot, missing_s: float, *, timing: Timing, allowed: _Allowed) -> Iterator[Decision]:
    if node.condition not in _DOUBTED:
        yield SetCondition(node.node, _C.SUSPECT, "its etcd lease is lost")
        return
    if missing_s < 0:
        return
    silence = node.silence
    if silence is None:
        if allowed.fence and node.can_power_off and not node.powering_off:
            yield PowerOff(node.node, node.known_boot_id)
        if allowed.fence:
            yield from _tell_if_stuck(node, missing_s, timing=timing)
        return
    if silence.boot_id != node.known_boot_id and silence.seconds < timing.slot_fresh_s:
        # What an observer has only begun to look at seems fresh for a moment, and may be what the boot *before* the
        # known one left, which the known one writes over only after a while. One that goes on beating is a later one.
        if node.other_boot_s >= 2 * timing.slot_fresh_s:
            evidence = f"its storage slot has been beating in boot {silence.boot_id} for {node.other_boot_s:.1f} s"
            yield RecordProof(node.node, node.known_boot_id, ProofKind.NEW_BOOT, evidence)
        return
    if silence.seconds < timing.slot_fresh_s:
        yield from _decide_isolated(node, silence, allowed=allowed)
        return
    if node.condition is not _C.FENCING:
        yield SetCondition(node.node, _C.FENCING, "its etcd lease and its storage heartbeat are lost")
    if allowed.fence and node.can_power_off and not node.powering_off:
        yield PowerOff(node.node, node.known_boot_id)
    if allowed.fence:
        yield from _proof_by_silence(node, missing_s, timing=timing)
        if node.condition is _C.FENCING:
            yield from _tell_if_stuck(node, missing_s, timing=timing)


def _tell_if_stuck(node: NodeSnapshot, missing_s: float, *, timing: Timing) -> Iterator[Decision]:
    help_wanted = request_for_help(node, missing_s, timing=timing)
    if help_wanted and help_wanted != node.reason:
        yield SetCondition(node.node, node.condition, help_wanted)


def _decide_isolated(node: NodeSnapshot, silence: Silence, *, allowed: _Allowed) -> Iterator[Decision]:
    """Its guests are legitimate while the slot beats. Only by its own word, in the slot, is it known that they ended.

    The node's agent gives it after its guard has found none left, so a pill needs an armed guard as silence does.
    """
    is_wanted_elsewhere = node.fence_asked or (node.isolated_for_long and allowed.move)
    if node.condition is not _C.ISOLATED:
        yield SetCondition(node.node, _C.ISOLATED, "its etcd lease is lost, its storage heartbeat beats")
    elif node.left_pill and node.left_pill in silence.acknowledged:
        evidence = f"its agent took the poison pill {node.left_pill}, as seen by {', '.join(silence.observers)}"
        yield RecordProof(node.node, node.known_boot_id, ProofKind.POISON_PILL, evidence)
    elif is_wanted_elsewhere:
        if node.guard_armed and not node.left_pill:
            yield LeavePill(node.node, node.known_boot_id)
        help_wanted = request_for_help_with_isolated(node)
        if help_wanted and help_wanted != node.reason:
            yield SetCondition(node.node, _C.ISOLATED, help_wanted)


def _proof_by_silence(node: NodeSnapshot, missing_s: float, *, timing: Timing) -> Iterator[Decision]:
    silence = node.silence
    if silence is None or not node.guard_armed:
        return
    lease_needs_s = node.guard_delay_s + timing.margin_s
    needs_s = slot_needs_s(node, timing)
    if missing_s >= lease_needs_s and silence.seconds >= needs_s:
        power = f"; its power could not be cut: {node.power_trouble}" if node.power_trouble else ""
        evidence = (
            f"etcd lease gone for {missing_s:.2f} s (needed {lease_needs_s:.2f}), storage slot silent for "
            f"{silence.seconds:.2f} s (needed {needs_s:.2f}) as seen by {', '.join(silence.observers)}; "
            f"its guard was armed{power}"
        )
        yield RecordProof(node.node, node.known_boot_id, ProofKind.SILENCE, evidence)


def _decide_fenced(node: NodeSnapshot, *, allowed: _Allowed) -> Iterator[Decision]:
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
    if node.waiting and allowed.move and not is_over:
        yield Evacuate(node.node, node.known_boot_id, node.waiting)
    if not is_over:
        if node.held > node.instances and not node.waiting:
            # While many leave, writing anew all that is still held would be most of the work.
            yield TrimAllocation(node.node)
        return
    if is_back:
        yield TrimAllocation(node.node)
        yield ClearProof(node.node, node.known_boot_id)
        yield _came_back(node)
    elif node.condition is not _C.EVACUATED:
        yield TrimAllocation(node.node)
        yield SetCondition(node.node, _C.EVACUATED, "it is fenced and none of its instances is left on it")
    elif node.held > node.instances:
        yield TrimAllocation(node.node)


def _came_back(node: NodeSnapshot) -> SetCondition:
    """What becomes of a node that is back, and that nothing leaves any more; one emptied on purpose left nothing."""
    if node.in_maintenance:
        return SetCondition(node.node, _C.READY, _BACK_IN_MAINTENANCE, adopt_report=True)
    return SetCondition(node.node, _C.QUARANTINED, _CAME_BACK, adopt_report=True)
