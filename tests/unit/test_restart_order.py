"""The order in which the instances of dead nodes come back, and how they are spread; computed, nothing runs."""

from collections import Counter
from dataclasses import replace

from leeward_controller.domain.instance import Resources, RestartPriority
from leeward_controller.domain.node import NodeAllocation, NodeCondition, Reservation
from leeward_controller.failover.order import Member, Stage, Tiers, open_tiers
from leeward_controller.failover.spread import Spot, Spread
from leeward_controller.scheduler.placement import Candidate, CandidatePool, PlacementPolicy, PlacementRequest, Ranking

HIGHEST, HIGH, MEDIUM = RestartPriority.HIGHEST, RestartPriority.HIGH, RestartPriority.MEDIUM
DATABASE = Member("database", HIGHEST, Stage.WAITING)
QUEUE = Member("queue", HIGH, Stage.WAITING)
WEB = Member("web", MEDIUM, Stage.WAITING)
HOST = Candidate(
    node="host-a",
    condition=NodeCondition.READY,
    alive=True,
    cordoned=False,
    vcpus=8,
    memory_mib=65536,
    pools=(CandidatePool("pool"),),
    allocation=NodeAllocation("host-a"),
)


def _open(*members: Member, before: Tiers | None = None, now_s: float = 0.0) -> Tiers:
    return open_tiers(members, since_s=before.since_s if before else {}, now_s=now_s, tier_wait_s=120.0)


def _stage(member: Member, stage: Stage) -> Member:
    return replace(member, stage=stage)


def test_a_tier_waits_until_the_one_above_has_settled() -> None:
    waiting = _open(DATABASE, QUEUE, WEB)
    assert [waiting.may_begin(each) for each in (DATABASE, QUEUE, WEB)] == [True, False, False]
    running = _open(_stage(DATABASE, Stage.UNDER_WAY), QUEUE, WEB, before=waiting, now_s=50.0)
    assert [running.may_begin(each) for each in (QUEUE, WEB)] == [False, False]
    # A restarted instance is on a dead node no more, so it is not among the members.
    assert [_open(QUEUE, WEB).may_begin(each) for each in (QUEUE, WEB)] == [True, False]


def test_what_finds_no_place_holds_up_nobody() -> None:
    failed = _stage(DATABASE, Stage.SETTLED)
    tiers = _open(failed, QUEUE, WEB)
    assert tiers.may_begin(QUEUE)
    assert not tiers.may_begin(WEB)
    assert tiers.may_begin(failed), "it is tried again meanwhile"


def test_no_tier_is_waited_for_beyond_the_bound() -> None:
    stuck = _stage(DATABASE, Stage.UNDER_WAY)
    first = _open(stuck, QUEUE, WEB, now_s=10.0)
    assert not first.overdue
    shortly_before = _open(stuck, QUEUE, WEB, before=first, now_s=129.9)
    assert not shortly_before.may_begin(QUEUE)
    overdue = _open(stuck, QUEUE, WEB, before=shortly_before, now_s=130.0)
    assert overdue.overdue == {HIGHEST}
    assert overdue.may_begin(QUEUE)
    assert not overdue.may_begin(WEB), "the next one is waited for as long again, from when it could begin"
    assert _open(stuck, QUEUE, WEB, before=overdue, now_s=250.0).may_begin(WEB)


def test_instances_of_one_priority_wait_for_nobody() -> None:
    tiers = _open(WEB, _stage(replace(WEB, instance="other"), Stage.UNDER_WAY))
    assert tiers.may_begin(WEB)
    assert not tiers.overdue


def _hosts(letters: str) -> list[Candidate]:
    made = []
    for letter in letters:
        node = f"host-{letter}"
        made.append(replace(HOST, node=node, allocation=NodeAllocation(node)))
    return made


def _request(number: int, memory_mib: int = 1024) -> PlacementRequest:
    return PlacementRequest(f"uid-{number}", Resources(1, memory_mib, 1), "pool")


def _place(spread: Spread, count: int, *, memory_mib: int = 1024) -> list[Spot]:
    return [spread.place(_request(number, memory_mib), f"vm-{number}") for number in range(count)]


def _spread(
    hosts: list[Candidate],
    *,
    limit: int = 8,
    starting: dict[str, int] | None = None,
    policy: PlacementPolicy | None = None,
) -> Spread:
    return Spread(hosts, policy=policy or PlacementPolicy(vcpu_overcommit=64), starting=starting or {}, limit=limit)


def test_starts_are_spread_evenly_and_no_node_gets_more_than_the_limit() -> None:
    spots = _place(_spread(_hosts("bcd"), limit=4), 15)
    assert Counter(spot.node for spot in spots) == {"host-b": 4, "host-c": 4, "host-d": 4, "": 3}
    assert all(spot.busy for spot in spots if not spot.node)


def test_starts_that_are_under_way_count() -> None:
    spots = _place(_spread(_hosts("bc"), limit=4, starting={"host-b": 3}), 6)
    assert Counter(spot.node for spot in spots) == {"host-b": 1, "host-c": 4, "": 1}


def test_each_is_placed_beside_those_before_it() -> None:
    spots = _place(_spread(_hosts("bc"), limit=100), 20, memory_mib=8192)
    # 65024 MiB are usable on each, which is room for seven.
    assert Counter(spot.node for spot in spots) == {"host-b": 7, "host-c": 7, "": 6}
    assert not any(spot.busy for spot in spots)


def test_to_pack_spills_over_when_the_fullest_is_busy() -> None:
    policy = PlacementPolicy(vcpu_overcommit=64, ranking=Ranking.PACK)
    fuller = replace(
        HOST, node="host-c", allocation=NodeAllocation("host-c", (Reservation("x", "x", 1, 4096, 1, "pool"),))
    )
    spots = _place(_spread([*_hosts("b"), fuller], limit=3, policy=policy), 5)
    assert [spot.node for spot in spots] == ["host-c"] * 3 + ["host-b"] * 2


def test_who_likes_a_busy_node_better_waits_for_it() -> None:
    liked = replace(HOST, node="host-c", allocation=NodeAllocation("host-c"), labels={"disk": "fast"})
    spread = _spread([*_hosts("b"), liked], limit=1)
    wishing = [replace(_request(number), preferred_labels={"disk": "fast"}) for number in range(2)]
    assert [spread.place(each, each.instance_uid) for each in wishing] == [Spot("host-c"), Spot(busy=True)]
