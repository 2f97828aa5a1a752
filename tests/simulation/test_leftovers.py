"""A host back in quarantine keeps what it has of guests that left it, and tells of it, until it is released."""

from leeward_controller.audit.leftovers import Leftover, LeftoverKind
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import DeleteArguments, OperationType
from leeward_controller.services.instances import Target
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story

K = LeftoverKind


async def left(story: Story, node: str = "host-a") -> dict[str, Leftover]:
    report = await story.services().leftovers.list(f"nodes/{node}")
    assert report.quarantined is (story.condition(node) is NodeCondition.QUARANTINED)
    return {story.narrator.plain(each.instance_uid): each for each in report.leftovers}


async def back_in_quarantine(story: Story) -> None:
    """host-a dies, its guests are moved, one of them is deleted, and it comes back."""
    for name in ("web-1", "web-2"):
        await story.launched(name, node="host-a")
    await story.cluster.nodes["host-a"].power_off()
    await story.until(
        lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=30, what="host-a is emptied"
    )
    await story.ended(await story.submit("web-2", OperationType.DELETE, DeleteArguments()))
    await story.power_on("host-a")
    await story.until(
        lambda: story.condition("host-a") is NodeCondition.QUARANTINED, within_s=30, what="host-a in quarantine"
    )


def test_leftovers_are_told_and_kept_until_the_node_is_released() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await back_in_quarantine(story)
        await story.clock.sleep(120)
        there = await left(story)
        assert {name: each.kind for name, each in there.items()} == {
            "web-1": K.DEFINITION_PUT_ASIDE,
            "web-2": K.DEFINITION,
        }
        web_1, web_2 = there["web-1"], there["web-2"]
        assert (web_1.exists, web_1.current_node) == (True, story.instance("web-1").node)
        assert (web_2.exists, web_2.instance) == (False, "projects/p/instances/web-2")
        audited = await story.services().audit.audit(repair=True, principal="admin:ann")
        assert [each.repaired for each in audited.findings] == [False]
        assert "uncordon" in audited.findings[0].finding.remedy
        assert await left(story) == there
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE)
        assert story.condition("host-a") is NodeCondition.READY
        await story.clock.sleep(60)
        assert list(await left(story)) == ["web-1"]
        assert (await story.services().audit.audit(repair=False, principal="admin:ann")).findings == ()
        story.check_settled()
        await story.end()

    run_virtually(main)
