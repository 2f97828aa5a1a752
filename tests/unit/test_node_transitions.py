"""What may follow on what for a node: the table, and that failover never steps outside it."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from leeward.agent.types import NodeReport
from leeward.errors import OperationRunning, WrongState
from leeward_controller.domain.node import Node, NodeCondition, NodeDuty, ProofKind
from leeward_controller.domain.node_transitions import (
    CONDITIONS,
    DUTIES,
    NODE_TABLE,
    check_node_allowed,
    with_condition,
    with_duty,
)
from leeward_controller.domain.operation import OperationType
from leeward_controller.failover.decide import decide
from leeward_controller.failover.model import (
    BrakePolicy,
    ClusterSnapshot,
    Decision,
    NodeSnapshot,
    PullBrake,
    SetCondition,
    Silence,
    Timing,
)

_C = NodeCondition
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NODE = Node(
    node="host-a",
    uid="uid",
    condition=_C.READY,
    reason="registered",
    report=NodeReport("host-a", "boot-1", "agent", "host-a:1", 8, 16384, (), "simulated", "1", "1", True, 5.0, 0.5),
    create_time=NOW,
    condition_time=NOW,
)
SNAPSHOT = NodeSnapshot(
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
    instances=0,
    waiting=(),
    can_power_off=False,
)


def _decided(*nodes: NodeSnapshot) -> list[Decision]:
    return decide(ClusterSnapshot(nodes, (), ""), timing=Timing(), brake=BrakePolicy())


def test_whatever_failover_sees_it_only_decides_what_the_table_allows() -> None:
    silences = (None, Silence(0.5, "boot-1", ("host-b",)), Silence(60.0, "boot-1", ("host-b",)))
    seen = set()
    for condition, missing_s, boot_id, proof, instances, maintenance, silence in product(
        CONDITIONS, (None, -1.0, 60.0), ("boot-1", "boot-2"), (None, ProofKind.SILENCE), (0, 1), (False, True), silences
    ):
        snapshot = replace(
            SNAPSHOT,
            condition=condition,
            lease_missing_s=missing_s,
            lease_boot_id="boot-1" if missing_s is not None else boot_id,
            proof=proof,
            instances=instances,
            waiting=("projects/p/instances/web",) if proof and instances else (),
            in_maintenance=maintenance,
            silence=silence,
        )
        node = replace(NODE, condition=condition)
        for decision in _decided(snapshot):
            if isinstance(decision, SetCondition):
                seen.add((node.condition, decision.condition))
                node = with_condition(node, decision.condition, decision.reason, now=NOW)
    # The table has no row that nobody needs.
    assert {(before, after) for before, afters in CONDITIONS.items() for after in afters} <= seen


def test_an_illegal_step_is_refused_with_the_nodes_story() -> None:
    node = with_duty(replace(NODE, condition=_C.EVACUATED, reason="it is fenced"), NodeDuty.CORDONED, reason="fans")
    with pytest.raises(WrongState) as caught:
        with_condition(node, _C.ISOLATED, "", now=NOW)
    told = caught.value.message
    assert told.startswith("nodes/host-a is EVACUATED since 2026-01-02 03:04:05Z (it is fenced), CORDONED (fans)")
    assert caught.value.metadata["current_state"] == "EVACUATED"


def test_duty_and_condition_do_not_wait_for_each_other() -> None:
    draining = with_duty(NODE, NodeDuty.DRAINING, reason="fans")
    assert draining.shown_condition is _C.DRAINING
    lost = with_condition(draining, _C.SUSPECT, "its etcd lease is lost", now=NOW)
    assert (lost.shown_condition, lost.duty) == (_C.SUSPECT, NodeDuty.DRAINING)
    assert with_condition(lost, _C.READY, "back", now=NOW).shown_condition is _C.DRAINING


@pytest.mark.parametrize(("before", "after"), list(product(NodeDuty, NodeDuty)))
def test_every_pair_of_duties(before: NodeDuty, after: NodeDuty) -> None:
    node = replace(NODE, duty=before, cordon_reason="fans")
    if before is after or after in DUTIES[before]:
        changed = with_duty(node, after, reason="disks")
        assert (changed.duty, changed.cordon_reason) == (after, "disks" if changed.cordoned else "")
    else:
        with pytest.raises(WrongState):
            with_duty(node, after, reason="disks")


@pytest.mark.parametrize(("wanted", "condition"), list(product(NODE_TABLE, CONDITIONS)))
def test_every_pair_of_operation_and_condition(wanted: OperationType, condition: NodeCondition) -> None:
    node, rule = replace(NODE, condition=condition, current_operation="operations/other"), NODE_TABLE[wanted]
    if condition not in rule.allowed_from:
        with pytest.raises(WrongState):
            check_node_allowed(node, wanted, running=None)
        return
    assert check_node_allowed(node, wanted, running=None) is False
    for running in NODE_TABLE:
        if running in rule.interrupts:
            assert check_node_allowed(node, wanted, running=running) is True
        else:
            with pytest.raises(OperationRunning) as caught:
                check_node_allowed(node, wanted, running=running)
            assert caught.value.metadata["operation"] == "operations/other"


def test_a_node_in_maintenance_may_go_and_come_without_a_fuss() -> None:
    gone = replace(SNAPSHOT, in_maintenance=True, condition=_C.EVACUATED, proof=ProofKind.SILENCE)
    *_, back = _decided(gone)
    assert isinstance(back, SetCondition)
    assert back.condition is _C.READY
    dead = replace(SNAPSHOT, condition=_C.FENCING, lease_missing_s=60.0)
    working = replace(dead, node="host-b", in_maintenance=True)
    others = (replace(SNAPSHOT, node="host-c"), replace(SNAPSHOT, node="host-d"))
    assert not any(isinstance(each, PullBrake) for each in _decided(dead, working, *others))
    assert any(isinstance(each, PullBrake) for each in _decided(dead, replace(working, instances=1), *others))


def test_a_second_reboot_does_not_release_from_quarantine() -> None:
    *_, decision = _decided(replace(SNAPSHOT, condition=_C.QUARANTINED, lease_boot_id="boot-2"))
    assert isinstance(decision, SetCondition)
    assert decision.condition is _C.QUARANTINED
