"""Whole stories on virtual time: what users and operators would notice, in milliseconds of real time."""

from leeward import keys
from leeward_controller.domain.instance import InstanceState, Resources
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import (
    DeleteArguments,
    LiveMigrateArguments,
    OperationPhase,
    OperationType,
    RebootArguments,
    ResizeArguments,
    StartArguments,
    StopArguments,
)
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import Story


def test_a_guest_lives_from_launch_to_delete() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1")
        for wanted, arguments, state in (
            (OperationType.REBOOT, RebootArguments(), InstanceState.ACTIVE),
            (OperationType.STOP, StopArguments(grace_period_s=5.0), InstanceState.STOPPED),
            (OperationType.START, StartArguments(), InstanceState.ACTIVE),
        ):
            ended = await story.ended(await story.submit("web-1", wanted, arguments))
            assert ended.phase is OperationPhase.SUCCEEDED, ended.error
            assert story.instance("web-1").state is state
            story.check_settled()
        await story.ended(await story.submit("web-1", OperationType.DELETE, DeleteArguments()))
        assert not story.has_instance("web-1")
        assert story.cluster.pool.disks == {}
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_live_migration_moves_the_guest_and_the_right_to_run_it() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        before = story.instance("web-1")
        migrate = await story.submit("web-1", OperationType.LIVE_MIGRATE, LiveMigrateArguments(node="host-b"))
        ended = await story.ended(migrate)
        assert ended.phase is OperationPhase.SUCCEEDED, ended.error
        after = story.instance("web-1")
        assert (after.node, after.run_epoch) == ("host-b", before.run_epoch + 1)
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_place_that_a_resize_may_return_to_outlives_the_death_of_its_node() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        await story.launched("web-2", node="host-a")
        larger = ResizeArguments("large", Resources(2, 2048, 4), node="host-b")
        ended = await story.ended(await story.submit("web-1", OperationType.RESIZE, larger))
        assert ended.phase is OperationPhase.SUCCEEDED, ended.error
        await story.cluster.nodes["host-a"].power_off()
        await story.until(lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=30, what="its end")
        await story.power_on("host-a")
        await story.until(
            lambda: story.condition("host-a") is NodeCondition.QUARANTINED, within_s=30, what="its return"
        )
        held = story.allocations()["host-a"].reservations
        assert [place.instance for place in held] == ["projects/p/instances/web-1"]
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_power_cut_restarts_every_guest_elsewhere_in_seconds() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        for number in range(3):
            await story.launched(f"web-{number}", node="host-a")
        await story.launched("bystander", node="host-b")
        cut_s = story.now_s
        story.tell("power cut")
        await story.cluster.nodes["host-a"].power_off()
        names = [f"web-{number}" for number in range(3)]
        await story.until(
            lambda: all(story.instance(n).node not in ("", "host-a") for n in names),
            within_s=12.0,
            what="all guests run elsewhere",
        )
        assert story.now_s - cut_s < 9.0
        await story.until(
            lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=5.0, what="the node is emptied"
        )
        assert story.instance("bystander").node == "host-b"
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_partition_from_etcd_alone_moves_nothing() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        story.cluster.network.isolate("host-a")
        await story.clock.sleep(120.0)
        assert story.instance("web-1").node == "host-a"
        assert story.cluster.world.running_on(story.instance("web-1").uid) == ["host-a"]
        story.cluster.network.rejoin("host-a")
        await story.clock.sleep(10.0)
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_all_controllers_gone_for_minutes_harms_no_guest() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1")
        for controller in story.cluster.controllers.values():
            await controller.kill()
        await story.clock.sleep(600.0)
        assert story.cluster.world.running_on(story.instance("web-1").uid) == [story.instance("web-1").node]
        for controller in story.cluster.controllers.values():
            controller.start()
        await story.clock.sleep(20.0)
        assert len(story.invariants.runs) == 1
        assert not any(node.killed_by_guard for node in story.cluster.nodes.values())
        assert story.stored_keys(keys.FENCES) == []
        story.check_settled()
        await story.end()

    run_virtually(main)
