"""Draining nodes, with instances that want it differently, and with a controller that dies at every single point."""

import asyncio
from typing import Any

import pytest

from leeward.agent.types import MigrationPhase
from leeward.errors import LeewardError
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.node import NodeCondition, NodeDuty
from leeward_controller.domain.node_operation import DRAIN_LABEL, MovePhase, OnFailure
from leeward_controller.domain.operation import (
    DeleteArguments,
    LiveMigrateArguments,
    Operation,
    OperationPhase,
    OperationType,
    StopArguments,
)
from leeward_controller.records import OPERATIONS
from leeward_controller.services.instances import Target
from leeward_lab.virtual_time import run_virtually
from tests.simulation.crash import crash_everywhere
from tests.simulation.story import ALICE, Story

pytestmark = pytest.mark.timeout(300)


def _moves(operation: Operation) -> dict[str, MovePhase]:
    return {move.instance.rpartition("/")[2]: move.phase for move in operation.work.moves}


def _count(story: Story, wanted: OperationType) -> int:
    return sum(1 for operation in story.all_of(OPERATIONS) if operation.type is wanted)


async def _quiet(story: Story) -> None:
    await story.until(lambda: not story.running_operations(), within_s=90.0, what="no operation is left")


async def _ask(asking: "asyncio.Future[Any]") -> None:
    """The client's call, whose controller may die before it answers."""
    done, _ = await asyncio.wait({asking}, timeout=20.0)
    if not done:
        asking.cancel()
    elif isinstance(error := asking.exception(), BaseException) and not isinstance(error, LeewardError):
        raise error


def test_a_drain_begins_no_move_twice_wherever_its_controller_dies() -> None:
    async def prepare(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        await story.launched("web-2", node="host-a")

    async def act(story: Story) -> None:
        await _ask(asyncio.ensure_future(story.drain("host-a", parallelism=1)))

    async def check(story: Story) -> None:
        await _quiet(story)
        begun = _count(story, OperationType.DRAIN_NODE)
        assert _count(story, OperationType.LIVE_MIGRATE) == 2 * begun, story.text()
        assert story.node("host-a").duty is (NodeDuty.MAINTENANCE if begun else NodeDuty.IN_SERVICE)
        assert story.node("host-a").current_operation == ""
        for name in ("web-1", "web-2"):
            assert (story.instance(name).node != "host-a") == bool(begun)
        assert len(story.invariants.running) == 2
        assert len(story.invariants.runs) == 2 + 2 * begun

    reached = crash_everywhere(prepare=prepare, act=act, check=check)
    assert any("after claim_run_epoch" in what for what in reached)


def test_a_cancelled_drain_ends_cleanly_wherever_its_controller_dies() -> None:
    async def prepare(story: Story) -> None:
        for name in ("web-1", "web-2"):
            await story.launched(name, node="host-a")

    async def act(story: Story) -> None:
        await _ask(asyncio.ensure_future(_drain_and_cancel(story)))

    async def check(story: Story) -> None:
        await _quiet(story)
        drains = [each for each in story.all_of(OPERATIONS) if each.type is OperationType.DRAIN_NODE]
        duty = story.node("host-a").duty
        for drain in drains:
            # A controller may die before the cancellation is written: then the drain simply goes on.
            cancelled = drain.phase is OperationPhase.CANCELLED
            assert cancelled or (drain.phase is OperationPhase.SUCCEEDED and not drain.cancel_requested), story.text()
            assert duty is (NodeDuty.IN_SERVICE if cancelled else NodeDuty.MAINTENANCE)
            moved = {name for name, phase in _moves(drain).items() if phase is MovePhase.MOVED}
            away = {name for name in ("web-1", "web-2") if story.instance(name).node != "host-a"}
            assert moved == away, story.text()
        assert len(story.invariants.running) == 2

    crash_everywhere(prepare=prepare, act=act, check=check)


async def _drain_and_cancel(story: Story) -> None:
    first = story.core()
    drain = await story.drain("host-a", parallelism=1, through=first)
    while story.instance("web-1").node == "host-a":
        await story.clock.sleep(0.05)
    await story.clock.sleep(0.5)
    if first.core is not None:
        await first.core.submitter.cancel(drain.id, ALICE)


def test_each_instance_is_moved_as_it_wants_and_the_rest_is_named() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("stays", node="host-a", labels={DRAIN_LABEL: "stay"})
        await story.launched("goes", node="host-a", labels={DRAIN_LABEL: "something newer"})
        ended = await story.ended(await story.drain("host-a", reason="new fans"))
        assert ended.phase is OperationPhase.SUCCEEDED, ended.error
        assert _moves(ended) == {"stays": MovePhase.STAYS, "goes": MovePhase.MOVED}
        # A node that is not empty is not in maintenance.
        node = story.node("host-a")
        assert node.shown_condition is NodeCondition.CORDONED
        assert node.cordon_reason == "new fans; 1 instances stay on it, as their labels ask"
        assert [away.instance for away in node.moved_away] == ["projects/p/instances/goes"]
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_what_finds_no_place_is_named_after_the_others_have_moved() -> None:
    async def main() -> None:
        story = Story(nodes=2, node_memory_mib=4096)
        await story.begin()
        for name, memory_mib, node in (("big", 3072, "host-a"), ("small", 256, "host-a"), ("other", 1024, "host-b")):
            await story.ended(await story.create(name, node=node, memory_mib=memory_mib))
        ended = await story.ended(await story.drain("host-a", retries=1))
        assert ended.phase is OperationPhase.FAILED
        assert ended.error is not None
        assert ended.error.reason == "NOT_DRAINED"
        assert "MiB memory are free" in ended.error.metadata["projects/p/instances/big"]
        assert _moves(ended) == {"big": MovePhase.FAILED, "small": MovePhase.MOVED}
        assert [move.attempt for move in ended.work.moves] == [2, 1]
        node = story.node("host-a")
        assert (node.duty, node.cordon_reason) == (NodeDuty.CORDONED, "it could not be drained")
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_drain_that_waits_goes_on_when_there_is_room() -> None:
    async def main() -> None:
        story = Story(nodes=2, node_memory_mib=4096)
        await story.begin()
        for name, memory_mib, node in (("big", 3072, "host-a"), ("other", 1024, "host-b")):
            await story.ended(await story.create(name, node=node, memory_mib=memory_mib))
        drain = await story.drain("host-a", retries=0, on_failure=OnFailure.WAIT)
        await story.clock.sleep(60.0)
        assert story.operation(drain.id).phase is OperationPhase.RUNNING
        assert story.node("host-a").shown_condition is NodeCondition.DRAINING
        await story.ended(await story.submit("other", OperationType.DELETE, DeleteArguments()))
        ended = await story.ended(drain)
        assert ended.phase is OperationPhase.SUCCEEDED, ended.error
        assert story.instance("big").node == "host-b"
        assert story.condition("host-a") is NodeCondition.READY
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_drain_waits_for_what_is_going_on_with_an_instance_and_for_what_is_on_its_way() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        await story.launched("arrives", node="host-b")
        arriving = await story.submit(
            "arrives", OperationType.LIVE_MIGRATE, LiveMigrateArguments(node="host-a", bandwidth_mib_s=200)
        )
        story.cluster.nodes["host-a"].host.ignores_acpi.add(story.instance("web-1").uid)
        stop = await story.submit("web-1", OperationType.STOP, StopArguments(grace_period_s=5.0))
        await story.clock.sleep(0.5)
        drain = await story.drain("host-a")
        await story.until(lambda: story.instance("arrives").node == "host-a", within_s=30.0, what="it has arrived")
        await story.ended(arriving)
        await story.ended(stop)
        ended = await story.ended(drain)
        assert ended.phase is OperationPhase.SUCCEEDED, (ended.error, story.text())
        assert _moves(ended) == {"web-1": MovePhase.MOVED, "arrives": MovePhase.MOVED}
        assert story.instance("web-1").state is InstanceState.STOPPED
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_what_could_not_be_brought_back_can_be_tried_again() -> None:
    async def main() -> None:
        story = Story(nodes=2, node_memory_mib=4096)
        await story.begin()
        await story.ended(await story.create("big", node="host-a", memory_mib=3072))
        await story.ended(await story.drain("host-a", enter_maintenance=False))
        assert story.node("host-a").shown_condition is NodeCondition.CORDONED
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE)
        assert story.node("host-a").moved_away == ()

        await story.ended(await story.drain("host-b"))
        await story.services().nodes.cordon(Target("nodes/host-b"), reason="work")
        assert story.node("host-b").shown_condition is NodeCondition.MAINTENANCE
        source = story.cluster.nodes["host-a"].host
        source.migration_errors[MigrationPhase.COPYING] = "the link is down"
        await story.services().nodes.uncordon(Target("nodes/host-b"), ALICE, bring_back=True)
        back = story.operation(story.node("host-b").current_operation.removeprefix("operations/"))
        assert back.type is OperationType.BRING_BACK
        ended = await story.ended(back)
        assert ended.error is not None
        assert "the link is down" in ended.error.metadata["projects/p/instances/big"]
        assert [away.instance for away in story.node("host-b").moved_away] == ["projects/p/instances/big"]
        source.migration_errors.clear()

        await story.services().nodes.uncordon(Target("nodes/host-b"), ALICE, bring_back=True)
        await _quiet(story)
        assert story.instance("big").node == "host-b"
        assert story.node("host-b").moved_away == ()
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_operations_that_are_part_of_a_drain_say_so() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        drain = await story.ended(await story.drain("host-a"))
        (moved,) = [each for each in story.all_of(OPERATIONS) if each.parent]
        assert (moved.parent, moved.requested_by) == (drain.name, drain.requested_by)
        assert moved.name == drain.work.moves[0].operation
        await story.end()

    run_virtually(main)
