"""Operators' hold on failover: a brake that is released, and a disarm that expires, as pure values."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from leeward_controller.domain.cluster import Brake, BrakeRelease, Disarm
from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.failover.countdown import Countdown
from leeward_controller.failover.decide import decide
from leeward_controller.failover.model import (
    Arm,
    BrakePolicy,
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
)
from leeward_controller.records import Stored
from leeward_lab.virtual_time import VirtualClock, run_virtually

_C = NodeCondition
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
READY = NodeSnapshot(
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
    instances=1,
    waiting=(),
    can_power_off=False,
)
SILENT = Silence(60.0, "boot-1", ("host-d",))
FENCING = replace(READY, condition=_C.FENCING, lease_missing_s=60.0, silence=SILENT)
FENCED = replace(FENCING, condition=_C.FENCED, proof=ProofKind.SILENCE, waiting=("guest",))
WORD = BrakeRelease("they are off, I was there", "admin:ann", NOON)
DISARM = Disarm("switches are replaced", "admin:ann", NOON, NOON + timedelta(hours=1))


def cluster(dead: str, alive: str, **more: object) -> ClusterSnapshot:
    """A cluster of nodes that are fenced and of such that are well, by the last letters of their names."""
    nodes = [replace(FENCED, node=f"host-{letter}") for letter in dead]
    nodes += [replace(READY, node=f"host-{letter}") for letter in alive]
    return replace(ClusterSnapshot(tuple(nodes), (), ""), **more)  # type: ignore[arg-type]


def decided(snapshot: ClusterSnapshot) -> list[Decision]:
    return decide(snapshot, timing=Timing(), brake=BrakePolicy())


def brake_on(dead: str, *, unwell: bool = False, release: BrakeRelease | None = None) -> Brake:
    return Brake("many look dead", tuple(f"host-{letter}" for letter in dead), NOON, unwell, release)


def moved(decisions: list[Decision]) -> list[str]:
    return [each.node for each in decisions if isinstance(each, Evacuate)]


def test_evacuation_goes_on_when_the_brake_is_released() -> None:
    assert decided(cluster("ab", "c", brake=brake_on("ab"))) == []
    assert moved(decided(cluster("ab", "c", brake=brake_on("ab", release=WORD)))) == ["host-a", "host-b"]


def test_a_release_is_for_the_nodes_that_were_counted() -> None:
    pulled, *others = decided(cluster("abe", "cd", brake=brake_on("ab", release=WORD)))
    assert isinstance(pulled, PullBrake)
    assert pulled.nodes == ("host-a", "host-b", "host-e")
    assert not pulled.keeps_release
    assert others == []


def test_a_release_ends_with_its_cause() -> None:
    released, *others = decided(cluster("a", "bc", brake=brake_on("ab", release=WORD)))
    assert isinstance(released, ReleaseBrake)
    assert moved(others) == ["host-a"]
    pulled, *others = decided(cluster("ab", "c"))
    assert isinstance(pulled, PullBrake)
    assert others == []


def test_a_release_outlasts_a_moment_of_being_unwell_and_does_not_count_in_it() -> None:
    (pulled,) = decided(cluster("ab", "c", brake=brake_on("ab", release=WORD), unwell="the store was away"))
    assert isinstance(pulled, PullBrake)
    assert pulled.unwell
    assert pulled.keeps_release
    during = brake_on("ab", unwell=True, release=WORD)
    assert during.holds
    assert decided(cluster("ab", "c", brake=during, unwell="the store was away")) == []
    again, *others = decided(cluster("ab", "c", brake=during))
    assert isinstance(again, PullBrake)
    assert again.keeps_release
    assert not again.unwell
    assert moved(others) == ["host-a", "host-b"]


def test_what_is_told_of_the_brake_follows_its_cause() -> None:
    (pulled,) = decided(cluster("ab", "c", brake=brake_on("", unwell=True)))
    assert isinstance(pulled, PullBrake)
    assert (pulled.nodes, pulled.unwell) == (("host-a", "host-b"), False)
    (grown,) = decided(cluster("abe", "cd", brake=brake_on("ab")))
    assert isinstance(grown, PullBrake)
    assert grown.nodes == ("host-a", "host-b", "host-e")


def one(node: NodeSnapshot, *, left_s: float = 600.0) -> list[Decision]:
    others = [replace(READY, node=f"host-{letter}") for letter in "bcd"]
    return decided(ClusterSnapshot((node, *others), (), "", disarm=DISARM, disarm_left_s=left_s))


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(FENCING, id="silent"),
        pytest.param(replace(FENCING, can_power_off=True), id="with a fence device"),
        pytest.param(replace(FENCING, silence=None, can_power_off=True), id="nobody can tell"),
        pytest.param(FENCED, id="proved before"),
        pytest.param(
            replace(FENCING, condition=_C.ISOLATED, silence=replace(SILENT, seconds=0.1), isolated_for_long=True),
            id="isolated for long",
        ),
    ],
)
def test_disarmed_nothing_is_done_to_a_node_that_looks_dead(node: NodeSnapshot) -> None:
    assert one(node) == []


def test_disarmed_it_is_still_told_how_nodes_are() -> None:
    (lost,) = one(replace(READY, lease_missing_s=0.1))
    assert isinstance(lost, SetCondition)
    assert lost.condition is _C.SUSPECT
    (fencing,) = one(replace(FENCING, condition=_C.SUSPECT))
    assert isinstance(fencing, SetCondition)
    assert fencing.condition is _C.FENCING
    (back,) = one(replace(FENCING, lease_missing_s=None))
    assert isinstance(back, SetCondition)
    assert back.condition is _C.READY


def test_disarmed_a_node_is_still_fenced_for_who_asks() -> None:
    power, proof = one(replace(FENCING, can_power_off=True, fence_asked=True))
    assert isinstance(power, PowerOff)
    assert isinstance(proof, RecordProof)
    isolated = replace(FENCING, condition=_C.ISOLATED, silence=replace(SILENT, seconds=0.1), fence_asked=True)
    (pill,) = one(isolated)
    assert isinstance(pill, LeavePill)


def test_a_disarm_whose_time_is_up_is_ended_before_anything_is_done() -> None:
    assert one(FENCED, left_s=0.0) == [Arm(DISARM)]
    assert moved(decided(cluster("a", "bcd"))) == ["host-a"]


class _Watch(VirtualClock):
    """A clock whose time of day can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.time = NOON

    def now(self) -> datetime:
        return self.time


@pytest.mark.parametrize(
    ("at_first_sight", "lasts_s"),
    [(0.0, 3600.0), (1200.0, 2400.0), (7200.0, 0.0), (-86400.0, 3600.0)],
    ids=["at once", "later", "clock ahead", "clock behind"],
)
def test_a_disarm_never_lasts_longer_than_asked_whatever_the_time_of_day(at_first_sight: float, lasts_s: float) -> None:
    async def main() -> None:
        watch = _Watch()
        watch.time += timedelta(seconds=at_first_sight)
        countdown, stored = Countdown(watch), Stored("disarm", DISARM, 7, 7)
        assert countdown.left_s(stored) == lasts_s
        for jump_s in (-86400.0, 86400.0):
            watch.time += timedelta(seconds=jump_s)
            assert countdown.left_s(stored) == lasts_s
        await watch.sleep(60.0)
        assert countdown.left_s(stored) == lasts_s - 60.0

    run_virtually(main)


def test_a_disarm_in_place_of_another_is_counted_anew() -> None:
    async def main() -> None:
        watch = _Watch()
        countdown = Countdown(watch)
        assert countdown.left_s(Stored("disarm", DISARM, 7, 7)) == 3600.0
        longer = replace(DISARM, expire_time=NOON + timedelta(hours=3))
        assert countdown.left_s(Stored("disarm", longer, 8, 7)) == 10800.0
        assert countdown.left_s(None) == 0.0

    run_virtually(main)
