"""Operators hold failover and let go of it: a disarm during a fence, its end, and a brake that is released."""

from collections.abc import Iterable

import pytest

from leeward import keys
from leeward.errors import FailedPrecondition
from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.records import BRAKE, DISARM
from leeward_controller.services.failover_control import FailoverControl
from leeward_controller.services.instances import Target
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story

ANN = "admin:ann"


async def begun(*, nodes: int = 3, placed: Iterable[tuple[str, str]] = (("web-1", "host-a"),)) -> Story:
    story = Story(nodes=nodes)
    await story.begin()
    for name, node in placed:
        await story.launched(name, node=node)
    return story


def control(story: Story) -> FailoverControl:
    return story.services().failover_control


async def disarm(story: Story, seconds: float) -> None:
    await control(story).disarm(reason="switches are replaced", duration_s=seconds, principal=ANN)


def proofs(story: Story) -> list[str]:
    return [key.removeprefix(keys.FENCES).partition("/")[0] for key in story.stored_keys(keys.FENCES)]


async def until_condition(story: Story, node: str, condition: NodeCondition, *, within_s: float = 15.0) -> None:
    await story.until(lambda: story.condition(node) is condition, within_s=within_s, what=f"{node} {condition}")


async def until_moved(story: Story, name: str, node: str, *, within_s: float = 20.0) -> None:
    def moved() -> bool:
        where = story.instance(name).node
        return where not in ("", node) and story.cluster.world.running_on(story.instance(name).uid) == [where]

    await story.until(moved, within_s=within_s, what=f"{name} runs elsewhere than on {node}")


def test_disarmed_in_the_middle_of_a_fence_nothing_more_is_done_until_it_expires() -> None:
    async def main() -> None:
        story = await begun()
        await story.cluster.nodes["host-a"].power_off()
        await until_condition(story, "host-a", NodeCondition.FENCING)
        await disarm(story, 300)
        began_s = story.now_s
        await story.clock.sleep(290)
        assert story.condition("host-a") is NodeCondition.FENCING
        assert proofs(story) == []
        assert story.instance("web-1").node == "host-a"
        await until_moved(story, "web-1", "host-a", within_s=30)
        assert story.now_s - began_s >= 300
        assert story.stored_keys(keys.DISARM) == []
        await until_condition(story, "host-a", NodeCondition.EVACUATED)
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_disarm_outlives_its_leader_and_ends_when_it_is_armed() -> None:
    async def main() -> None:
        story = await begun()
        await disarm(story, 3600)
        await story.cluster.nodes["host-a"].power_off()
        await story.cluster.controllers["control-1"].kill()
        await until_condition(story, "host-a", NodeCondition.FENCING, within_s=60)
        await story.clock.sleep(120)
        assert proofs(story) == []
        assert not (await control(story).arm(principal=ANN)).disarm
        await until_moved(story, "web-1", "host-a")
        await story.end()

    run_virtually(main)


def test_disarmed_a_proof_stays_and_no_further_evacuation_begins() -> None:
    async def main() -> None:
        story = await begun(placed=[(f"web-{number}", "host-a") for number in range(3)])
        await story.cluster.nodes["host-a"].power_off()
        await story.until(lambda: proofs(story) == ["host-a"], within_s=20, what="a proof")
        await disarm(story, 3600)
        begun_by_then = {operation.subject for operation in story.running_operations()}
        await story.clock.sleep(60)
        assert proofs(story) == ["host-a"]
        left = {name for name in ("web-0", "web-1", "web-2") if story.instance(name).node == "host-a"}
        assert {story.instance(name).name for name in left}.isdisjoint(begun_by_then)
        await control(story).arm(principal=ANN)
        for name in left:
            await until_moved(story, name, "host-a")
        await story.end()

    run_virtually(main)


def test_disarmed_a_node_is_fenced_and_evacuated_by_hand() -> None:
    async def main() -> None:
        story = await begun()
        await disarm(story, 3600)
        await story.cluster.nodes["host-a"].power_off()
        await until_condition(story, "host-a", NodeCondition.FENCING)
        fence = await story.services().node_operations.fence(Target("nodes/host-a"), ALICE, force=False)
        ended = await story.ended(fence.operation)
        assert ended.error is None
        await until_condition(story, "host-a", NodeCondition.FENCED)
        await story.clock.sleep(60)
        assert story.instance("web-1").node == "host-a"
        begun_by_hand, refused = await story.services().nodes.evacuate(Target("nodes/host-a"), ALICE, target_node="")
        assert (len(begun_by_hand), refused) == (1, ())
        await until_moved(story, "web-1", "host-a")
        await until_condition(story, "host-a", NodeCondition.EVACUATED)
        await story.end()

    run_virtually(main)


def test_the_brake_released_lets_evacuation_go_on() -> None:
    async def main() -> None:
        placed = [("web-1", "host-a"), ("web-2", "host-b")]
        story = await begun(nodes=4, placed=placed)
        with pytest.raises(FailedPrecondition, match="not pulled"):
            await control(story).release_brake(reason="why not", principal=ANN)
        for node in ("host-a", "host-b"):
            await story.cluster.nodes[node].power_off()
        await story.until(story.braked, within_s=20, what="the brake")
        await story.clock.sleep(60)
        assert story.instance("web-1").node == "host-a"
        state = await control(story).release_brake(reason="the rack lost its power", principal=ANN)
        assert state.brake is not None
        assert not state.brake.value.holds
        assert state.brake.value.nodes == ("host-a", "host-b")
        assert await control(story).release_brake(reason="the rack lost its power", principal=ANN)
        with pytest.raises(FailedPrecondition, match="the rack lost its power"):
            await control(story).release_brake(reason="another", principal=ANN)
        for name, node in placed:
            await until_moved(story, name, node)
        await story.until(
            lambda: not story.stored_keys(keys.BRAKE), within_s=20, what="the brake is gone with its cause"
        )
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_release_is_not_for_a_node_that_is_lost_after_it() -> None:
    async def main() -> None:
        placed = [("web-1", "host-a"), ("web-2", "host-b"), ("web-3", "host-c")]
        story = await begun(nodes=5, placed=placed)
        for node in ("host-a", "host-b"):
            await story.cluster.nodes[node].power_off()
        await story.clock.sleep(0.7)
        await story.cluster.nodes["host-c"].power_off()
        await story.until(story.braked, within_s=20, what="the brake")
        state = await control(story).release_brake(reason="the rack lost its power", principal=ANN)
        assert state.brake is not None
        assert state.brake.value.nodes == ("host-a", "host-b")
        await story.clock.sleep(60)
        (brake,) = story.all_of(BRAKE)
        assert brake.holds
        assert brake.nodes == ("host-a", "host-b", "host-c")
        assert [story.instance(name).node for name, _ in placed] == ["host-a", "host-b", "host-c"]
        await control(story).release_brake(reason="and the next one", principal=ANN)
        for name, node in placed:
            await until_moved(story, name, node)
        await story.until(
            lambda: not story.stored_keys(keys.BRAKE), within_s=20, what="the brake is gone with its cause"
        )
        await story.end()

    run_virtually(main)


def test_a_brake_that_a_lost_store_pulled_is_not_released_by_hand() -> None:
    async def main() -> None:
        story = await begun()
        core = story.core().core
        assert core is not None
        core.view.last_trouble_s = story.now_s  # As when the store has just failed a call.
        await story.until(story.braked, within_s=20, what="the brake")
        with pytest.raises(FailedPrecondition, match="by itself") as caught:
            await control(story).release_brake(reason="I know better", principal=ANN)
        assert caught.value.specific_reason == "CONTROLLERS_UNWELL"
        await story.until(lambda: not story.braked(), within_s=20, what="it is released by itself")
        await story.end()

    run_virtually(main)


def test_it_is_told_who_leads_and_since_when_and_what_disarms() -> None:
    async def main() -> None:
        story = await begun()
        state = await control(story).state()
        assert state.leader is not None
        assert state.leader.lead_time is not None
        led_s = (story.clock.now() - state.leader.lead_time).total_seconds()
        assert 0 < led_s <= story.now_s
        await disarm(story, 60)
        longer = await control(story).disarm(reason="it takes longer", duration_s=7200, principal="admin:bob")
        assert longer.disarm is not None
        assert [longer.disarm] == story.all_of(DISARM)
        assert (longer.disarm.reason, longer.disarm.disarmed_by) == ("it takes longer", "admin:bob")
        await story.clock.sleep(600)
        assert (await control(story).state()).disarm == longer.disarm
        await story.end()

    run_virtually(main)


def test_what_a_proof_by_hand_is_worth_is_not_changed_by_a_disarm() -> None:
    async def main() -> None:
        story = await begun()
        await disarm(story, 3600)
        await story.cluster.nodes["host-a"].power_off()
        await until_condition(story, "host-a", NodeCondition.FENCING)
        boot_id = story.node("host-a").report.boot_id
        proof = await story.services().nodes.attest_fenced(
            Target("nodes/host-a"), ALICE, boot_id=boot_id, evidence="I pulled the plug"
        )
        assert proof.kind is ProofKind.ATTESTATION
        await story.clock.sleep(30)
        assert story.instance("web-1").node == "host-a"
        await control(story).arm(principal=ANN)
        await until_moved(story, "web-1", "host-a")
        await story.end()

    run_virtually(main)
