"""Who is dead, and what follows: failover's decisions as pure values."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from leeward_controller.domain.cluster import Brake
from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.failover.decide import decide
from leeward_controller.failover.model import (
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
    ReleaseBrake,
    SetCondition,
    Silence,
    Timing,
    TrimAllocation,
)

_C = NodeCondition
HEALTHY = NodeSnapshot(
    node="host-a",
    condition=_C.READY,
    in_maintenance=False,
    known_boot_id="boot-1",
    lease_boot_id="boot-1",
    lease_missing_s=None,
    report_changed=False,
    guard_armed=True,
    lease_ttl_s=5.0,
    guard_delay_s=0.5,
    silence=None,
    proof=None,
    instances=3,
    waiting=(),
    can_power_off=False,
)
OTHERS = tuple(replace(HEALTHY, node=f"host-{letter}") for letter in "bcd")


def decisions_for(node: NodeSnapshot, *, unwell: str = "", brake: Brake | None = None) -> list[Decision]:
    snapshot = ClusterSnapshot((node, *OTHERS), (), unwell, brake)
    return decide(snapshot, timing=Timing(), brake=BrakePolicy())


def silent(seconds: float, boot_id: str = "boot-1") -> Silence:
    return Silence(seconds, boot_id, ("host-b",))


def fencing(missing_s: float, silence: Silence | None, **changes: object) -> NodeSnapshot:
    node = replace(HEALTHY, condition=_C.FENCING, lease_missing_s=missing_s, silence=silence)
    return replace(node, **changes)  # type: ignore[arg-type]


def test_a_healthy_cluster_needs_nothing() -> None:
    assert decisions_for(HEALTHY) == []


def test_a_lost_lease_alone_fences_nobody() -> None:
    lost = replace(HEALTHY, lease_missing_s=0.0)
    assert decisions_for(lost) == [SetCondition("host-a", _C.SUSPECT, "its etcd lease is lost")]
    beating = replace(lost, condition=_C.SUSPECT, lease_missing_s=600.0, silence=silent(0.4))
    (decision,) = decisions_for(beating)
    assert isinstance(decision, SetCondition)
    assert decision.condition is _C.ISOLATED
    assert decisions_for(replace(beating, condition=_C.ISOLATED)) == []
    (request,) = decisions_for(replace(beating, condition=_C.ISOLATED, isolated_for_long=True, guard_armed=False))
    assert isinstance(request, SetCondition)
    assert "leeward node attest-fenced" in request.reason
    assert decisions_for(
        replace(beating, condition=_C.ISOLATED, isolated_for_long=True, guard_armed=False, reason=request.reason)
    ) == []  # fmt: skip


def test_an_isolated_node_that_does_not_take_its_pill_is_told_of() -> None:
    wanted = replace(HEALTHY, condition=_C.ISOLATED, lease_missing_s=600.0, silence=silent(0.4), isolated_for_long=True)
    assert decisions_for(wanted) == [LeavePill("host-a", "boot-1")]
    left = replace(wanted, left_pill="pill")
    assert decisions_for(left) == []
    (request,) = decisions_for(replace(left, pill_overdue=True))
    assert isinstance(request, SetCondition)
    assert "poison pill" in request.reason
    assert decisions_for(replace(left, pill_overdue=True, reason=request.reason)) == []


@pytest.mark.parametrize(
    ("missing_s", "silent_s", "proved"),
    [(1.0, 6.0, True), (0.99, 6.0, False), (1.0, 5.99, False), (100.0, 3.0, False), (0.0, 100.0, False)],
)
def test_silence_is_a_proof_only_beyond_ttl_guard_and_margin(missing_s: float, silent_s: float, proved: bool) -> None:
    found = decisions_for(fencing(missing_s, silent(silent_s)))
    proofs = [d for d in found if isinstance(d, RecordProof)]
    assert bool(proofs) is proved
    assert all(p.kind is ProofKind.SILENCE and p.boot_id == "boot-1" for p in proofs)


def test_a_new_leader_grants_a_missing_node_its_ttl_before_it_acts() -> None:
    assert decisions_for(fencing(-0.1, silent(600.0), can_power_off=True)) == []


def test_silence_proves_nothing_without_an_armed_guard_or_an_observer() -> None:
    for node in (fencing(600.0, silent(600.0), guard_armed=False), fencing(600.0, None)):
        (told,) = decisions_for(node)
        assert isinstance(told, SetCondition)
        assert told.condition is _C.FENCING
        assert "attest-fenced host-a" in told.reason
        assert decisions_for(replace(node, reason=told.reason)) == []


def test_help_is_asked_for_only_when_no_proof_will_come_by_itself() -> None:
    unguarded = fencing(600.0, silent(600.0), guard_armed=False, can_power_off=True, powering_off=True)
    assert decisions_for(unguarded) == []
    (told,) = decisions_for(replace(unguarded, power_trouble="connection refused"))
    assert isinstance(told, SetCondition)
    assert "connection refused" in told.reason
    assert decisions_for(fencing(3.0, None)) == []
    assert decisions_for(fencing(3.0, silent(4.0))) == []


def test_a_proof_by_silence_tells_why_the_power_could_not_be_cut() -> None:
    node = fencing(9.0, silent(9.0), can_power_off=True, powering_off=True, power_trouble="wrong password")
    (proof,) = decisions_for(node)
    assert isinstance(proof, RecordProof)
    assert proof.kind is ProofKind.SILENCE
    assert "wrong password" in proof.evidence


def test_power_is_cut_once_when_a_device_is_there() -> None:
    node = fencing(0.1, silent(3.0), can_power_off=True)
    assert decisions_for(node) == [PowerOff("host-a", "boot-1")]
    assert decisions_for(replace(node, powering_off=True)) == []


def test_a_slot_that_goes_on_beating_in_another_boot_proves_the_old_one_over() -> None:
    node = fencing(7.0, silent(0.1, boot_id="boot-2"))
    assert decisions_for(replace(node, other_boot_s=4.9)) == []
    (decision,) = decisions_for(replace(node, other_boot_s=5.0))
    assert isinstance(decision, RecordProof)
    assert decision.kind is ProofKind.NEW_BOOT


def test_what_an_earlier_boot_left_in_the_slot_proves_nothing_of_the_later_one() -> None:
    assert decisions_for(fencing(0.1, silent(3.0, boot_id="boot-0"))) == []
    (decision,) = decisions_for(fencing(6.0, silent(6.0, boot_id="boot-0")))
    assert isinstance(decision, RecordProof)
    assert decision.kind is ProofKind.SILENCE
    assert decisions_for(fencing(0.1, silent(6.0, boot_id="boot-0"))) == []


def test_a_node_that_was_only_away_is_ready_again_and_its_guests_are_left_alone() -> None:
    back = replace(HEALTHY, condition=_C.FENCING)
    (decision,) = decisions_for(back)
    assert isinstance(decision, SetCondition)
    assert decision.condition is _C.READY


def test_a_rebooted_node_takes_its_guests_again() -> None:
    proof, condition = decisions_for(replace(HEALTHY, lease_boot_id="boot-2"))
    assert isinstance(proof, RecordProof)
    assert proof.kind is ProofKind.NEW_BOOT
    assert proof.boot_id == "boot-1"
    assert isinstance(condition, SetCondition)
    assert condition.adopt_report


def test_nothing_moves_before_the_proof_is_stored_and_everything_after() -> None:
    assert not any(isinstance(d, Evacuate) for d in decisions_for(fencing(9.0, silent(9.0), waiting=("one",))))
    fenced = fencing(9.0, silent(9.0), proof=ProofKind.SILENCE, waiting=("one", "two"))
    assert Evacuate("host-a", "boot-1", ("one", "two")) in decisions_for(fenced)


def test_an_emptied_node_is_evacuated_and_quarantined_when_it_returns() -> None:
    empty = fencing(30.0, None, condition=_C.FENCED, proof=ProofKind.SILENCE, instances=0)
    assert [type(d) for d in decisions_for(empty)] == [TrimAllocation, SetCondition]
    returned = replace(empty, condition=_C.EVACUATED, lease_missing_s=None)
    found = decisions_for(returned)
    assert ClearProof("host-a", "boot-1") in found
    assert isinstance(found[-1], SetCondition)
    assert found[-1].condition is _C.QUARANTINED


def test_what_was_not_moved_away_stays_on_a_node_that_returns_in_the_same_boot() -> None:
    fenced = fencing(
        30.0, None, condition=_C.FENCED, proof=ProofKind.SILENCE, instances=2, idle=2, waiting=("one", "two")
    )
    assert Evacuate("host-a", "boot-1", ("one", "two")) in decisions_for(fenced)
    returned = replace(fenced, lease_missing_s=None)
    found = decisions_for(returned)
    assert ClearProof("host-a", "boot-1") in found
    assert not any(isinstance(d, Evacuate) for d in found)
    assert not any(isinstance(d, ClearProof) for d in decisions_for(replace(returned, idle=1)))


def test_many_nodes_dead_at_once_pull_the_brake_and_nothing_is_moved() -> None:
    dead = tuple(
        replace(fencing(9.0, silent(9.0), proof=ProofKind.SILENCE, waiting=("guest",)), node=f"host-{letter}")
        for letter in "ab"
    )
    snapshot = ClusterSnapshot((*dead, *OTHERS[1:]), (), "")
    found = decide(snapshot, timing=Timing(), brake=BrakePolicy())
    assert any(isinstance(d, PullBrake) and d.nodes == ("host-a", "host-b") for d in found)
    assert not any(isinstance(d, Evacuate) for d in found)


def test_a_store_that_was_unwell_brakes_until_it_has_been_well() -> None:
    fenced = fencing(9.0, silent(9.0), proof=ProofKind.SILENCE, condition=_C.FENCED, waiting=("one",))
    (brake,) = decisions_for(fenced, unwell="the store could not be reached 1.0 s ago")
    assert isinstance(brake, PullBrake)
    release, evacuate = decisions_for(fenced, brake=Brake("", (), datetime(2026, 1, 1, tzinfo=UTC), unwell=True))
    assert isinstance(release, ReleaseBrake)
    assert isinstance(evacuate, Evacuate)
