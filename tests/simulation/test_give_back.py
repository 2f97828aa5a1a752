"""What failover took from a node returns to it: by itself where policy says so, else when an operator asks for it."""

from leeward_controller.core import Policy
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import LiveMigrateArguments, OperationType
from leeward_controller.housekeeping.give_back import GiveBackPolicy
from leeward_controller.services.instances import Target
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story

_NAMES = ("web-1", "web-2", "web-3")


async def _failed_over(policy: Policy) -> Story:
    """A story in which host-a has died with three guests, and is back and in service again."""
    story = Story(policy=policy)
    await story.begin()
    for name in _NAMES:
        await story.launched(name, node="host-a")
    await story.cluster.nodes["host-a"].power_off()
    await story.until(lambda: _hosts(story).isdisjoint({"host-a"}), within_s=30.0, what="they run elsewhere")
    await story.until(lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=10.0, what="all is over")
    await story.power_on("host-a")
    back = (NodeCondition.READY, NodeCondition.QUARANTINED)
    await story.until(lambda: story.condition("host-a") in back, within_s=10.0, what="it is back")
    return story


def _hosts(story: Story) -> set[str]:
    return {story.instance(name).node for name in _NAMES}


def test_by_policy_a_node_that_is_well_again_gets_its_guests_back_and_none_that_was_moved_since() -> None:
    async def main() -> None:
        story = await _failed_over(Policy(give_back=GiveBackPolicy(enabled=True, after_s=20.0)))
        other = ({"host-b", "host-c"} - {story.instance("web-2").node}).pop()
        moved = await story.ended(await story.submit("web-2", OperationType.LIVE_MIGRATE, LiveMigrateArguments(other)))
        assert moved.error is None, moved.error
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE)
        began_s = story.now_s
        await story.clock.sleep(15.0)
        assert "host-a" not in _hosts(story), "it has to be well for a while"
        await story.until(
            lambda: story.instance("web-1").node == story.instance("web-3").node == "host-a",
            within_s=20.0,
            what="they are back",
        )
        assert story.now_s - began_s >= 20.0
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="all is well")
        assert story.instance("web-2").node == other
        await story.clock.sleep(60.0)
        assert story.instance("web-2").node == other
        assert story.node("host-a").moved_away == ()
        await story.end()

    run_virtually(main)


def test_without_it_they_return_when_an_operator_asks() -> None:
    async def main() -> None:
        story = await _failed_over(Policy())
        assert {away.instance.rpartition("/")[2] for away in story.node("host-a").moved_away} == {*_NAMES}
        await story.clock.sleep(600.0)
        assert "host-a" not in _hosts(story)
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE, bring_back=True)
        await story.until(lambda: _hosts(story) == {"host-a"}, within_s=30.0, what="they are back")
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="all is well")
        assert story.node("host-a").moved_away == ()
        await story.end()

    run_virtually(main)


def test_whoever_uncordons_it_without_asking_leaves_them_where_they_are() -> None:
    async def main() -> None:
        story = await _failed_over(Policy())
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE)
        assert story.node("host-a").moved_away == ()
        await story.end()

    run_virtually(main)
