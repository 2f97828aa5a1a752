"""Rehearsing a failover: what runs goes live to where it would be restarted, and comes back; nothing is lost by it."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from leeward import keys
from leeward.errors import FailedPrecondition, OperationRunning
from leeward_controller.domain.failover import FailoverKind, FailoverRecord, FailoverState, GuestOutcome
from leeward_controller.domain.node import NodeDuty
from leeward_controller.domain.node_operation import DRAIN_LABEL
from leeward_controller.domain.operation import (
    Operation,
    OperationPhase,
    OperationType,
    PlainArguments,
    StopArguments,
)
from leeward_controller.records import FAILOVERS, OPERATIONS
from leeward_controller.services.instances import Target
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story


def told(main: Callable[[Story], Coroutine[Any, Any, None]], **cluster: Any) -> None:
    """Run a story in a cluster of its own."""

    async def run() -> None:
        story = Story(**cluster)
        await story.begin()
        await main(story)
        story.check_settled()
        await story.end()

    run_virtually(run)


async def drill(story: Story, node: str = "host-a") -> Operation:
    return (await story.services().node_operations.drill(Target(f"nodes/{node}"), ALICE, parallelism=0)).operation


async def told_of(story: Story) -> FailoverRecord:
    """The only record there is."""
    await story.until(lambda: len(story.all_of(FAILOVERS)) == 1, within_s=10.0, what="it is on record")
    (record,) = story.all_of(FAILOVERS)
    return record


def test_guests_go_where_failover_would_restart_them_and_come_back() -> None:
    async def main(story: Story) -> None:
        for number in range(3):
            await story.launched(f"web-{number}", node="host-a")
        await story.launched("stays", node="host-a", labels={DRAIN_LABEL: "stay"})
        await story.launched("cold", node="host-a", labels={DRAIN_LABEL: "cold"})
        await story.launched("off", node="host-a")
        await story.ended(await story.submit("off", OperationType.STOP, StopArguments(grace_period_s=1.0)))
        await story.launched("paused", node="host-a")
        await story.ended(await story.submit("paused", OperationType.PAUSE, PlainArguments()))
        plan, _ = await story.services().node_operations.plan_failover("nodes/host-a")
        planned = {each.instance: each.node for each in plan.placements}
        before = {instance.name: instance.last_boot_time for instance in story.instances().values()}
        begun_s = story.now_s
        ended = await story.ended(await drill(story))
        assert ended.phase is OperationPhase.SUCCEEDED, f"{ended.error}\n{story.text()}"
        assert {instance.node for instance in story.instances().values()} == {"host-a"}
        assert {instance.name: instance.last_boot_time for instance in story.instances().values()} == before
        assert story.node("host-a").duty is NodeDuty.IN_SERVICE
        assert story.node("host-a").moved_away == ()
        record = await told_of(story)
        assert (record.kind, record.operation) == (FailoverKind.DRILL, ended.name)
        assert (record.state, record.proof, record.measured) == (FailoverState.RECOVERED, None, True)
        assert (record.to_restart, record.restarted, record.left_alone) == (4, 4, 3)
        names = [guest.instance.rpartition("/")[2] for guest in record.guests]
        assert names == ["paused", "web-0", "web-1", "web-2"]
        assert record.total_s is not None
        assert record.last_restart_s is not None
        assert 0.0 < record.last_restart_s < record.total_s <= story.now_s - begun_s
        for guest in record.guests:
            assert guest.outcome is GuestOutcome.BROUGHT_BACK
            assert guest.to_node == planned[guest.instance]
            assert guest.restart_s is not None
            assert guest.ended_s is not None
            assert 0.0 < guest.restart_s <= guest.ended_s <= record.last_restart_s
        moved = [each for each in story.all_of(OPERATIONS) if each.parent == ended.name]
        assert {each.type for each in moved} == {OperationType.LIVE_MIGRATE}
        assert len(moved) == 8
        await story.ended(await story.submit("paused", OperationType.UNPAUSE, PlainArguments()))

    told(main)


def test_who_takes_over_in_the_middle_brings_all_back() -> None:
    async def main(story: Story) -> None:
        for number in range(4):
            await story.launched(f"web-{number}", node="host-a")
        leader = next(c for c in story.cluster.controllers.values() if c.core and c.core.leadership.epoch)
        begun = await drill(story)
        await story.until(
            lambda: any(instance.node != "host-a" for instance in story.instances().values()),
            within_s=60.0,
            what="one has left",
        )
        await leader.kill()
        ended = await story.ended(begun)
        assert ended.phase is OperationPhase.SUCCEEDED, f"{ended.error}\n{story.text()}"
        assert {instance.node for instance in story.instances().values()} == {"host-a"}
        record = await told_of(story)
        assert (record.state, record.restarted) == (FailoverState.RECOVERED, 4)
        assert len([each for each in story.all_of(OPERATIONS) if each.parent == ended.name]) == 8

    told(main)


def test_what_would_find_no_place_is_told_and_stays() -> None:
    async def main(story: Story) -> None:
        for name, node in (("big-a", "host-a"), ("big-b", "host-b")):
            await story.ended(await story.create(name, node=node, memory_mib=12_000))
        await story.launched("small", node="host-a")
        ended = await story.ended(await drill(story))
        assert ended.phase is OperationPhase.FAILED
        assert ended.error is not None
        assert ended.error.reason == "DRILL_FAILED"
        assert "projects/p/instances/big-a" in ended.error.metadata
        assert (story.instance("big-a").node, story.instance("small").node) == ("host-a", "host-a")
        assert story.node("host-a").duty is NodeDuty.IN_SERVICE
        record = await told_of(story)
        assert (record.state, record.restarted, record.no_place) == (FailoverState.INCOMPLETE, 1, 1)
        outcomes = {guest.instance.rpartition("/")[2]: guest.outcome for guest in record.guests}
        assert outcomes == {"big-a": GuestOutcome.NO_PLACE, "small": GuestOutcome.BROUGHT_BACK}

    told(main, nodes=2)


def test_a_drill_that_is_cancelled_leaves_a_way_back() -> None:
    async def main(story: Story) -> None:
        for number in range(4):
            await story.launched(f"web-{number}", node="host-a")
        begun = await drill(story)
        await story.until(
            lambda: any(instance.node != "host-a" for instance in story.instances().values()),
            within_s=60.0,
            what="one has left",
        )
        core = story.core().core
        assert core is not None
        await core.submitter.cancel(begun.id, ALICE)
        ended = await story.ended(begun)
        assert ended.phase is OperationPhase.CANCELLED
        away = {instance.name for instance in story.instances().values() if instance.node != "host-a"}
        assert away
        assert {each.instance for each in story.node("host-a").moved_away} == away
        assert story.node("host-a").duty is NodeDuty.IN_SERVICE
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE, bring_back=True)
        await story.until(lambda: not story.running_operations(), within_s=120.0, what="all is back")
        assert {instance.node for instance in story.instances().values()} == {"host-a"}

    told(main)


def test_a_node_that_dies_in_its_drill_is_failed_over_in_earnest() -> None:
    async def main(story: Story) -> None:
        for number in range(4):
            await story.launched(f"web-{number}", node="host-a")
        begun = await drill(story)
        await story.until(
            lambda: any(instance.node != "host-a" for instance in story.instances().values()),
            within_s=60.0,
            what="one has left",
        )
        await story.cluster.nodes["host-a"].power_off()
        ended = await story.ended(begun)
        assert ended.phase is OperationPhase.FAILED
        await story.until(
            lambda: all(instance.node not in ("", "host-a") for instance in story.instances().values()),
            within_s=60.0,
            what="all run elsewhere",
        )
        await story.until(
            lambda: (
                {(r.kind, r.state.ended) for r in story.all_of(FAILOVERS)}
                == {(FailoverKind.FAILURE, True), (FailoverKind.DRILL, True)}
            ),
            within_s=30.0,
            what="both are on record",
        )
        await story.until(lambda: not story.unsettled(), within_s=30.0, what="all is settled")

    told(main)


def test_a_node_that_is_cordoned_in_its_drill_stays_cordoned() -> None:
    async def main(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        begun = await drill(story)
        with pytest.raises(OperationRunning, match="DRILL_NODE"):
            await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE)
        await story.services().nodes.cordon(Target("nodes/host-a"), reason="it smells of smoke")
        ended = await story.ended(begun)
        assert ended.error is not None
        assert "cordoned" in ended.error.message
        assert story.instance("web-1").node != "host-a"
        node = story.node("host-a")
        assert (node.duty, node.cordon_reason) == (NodeDuty.CORDONED, "it smells of smoke")
        assert [each.instance for each in node.moved_away] == ["projects/p/instances/web-1"]
        record = await told_of(story)
        assert (record.state, [each.outcome for each in record.guests]) == (
            FailoverState.INCOMPLETE,
            [GuestOutcome.RESTARTED],
        )

    told(main)


def test_a_node_that_is_not_in_service_is_not_drilled() -> None:
    async def main(story: Story) -> None:
        await story.services().nodes.cordon(Target("nodes/host-a"), reason="fans")
        with pytest.raises(FailedPrecondition, match="fans"):
            await drill(story)
        assert story.stored_keys(keys.OPERATIONS) == []

    told(main)
