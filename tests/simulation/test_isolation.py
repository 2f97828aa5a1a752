"""A node that lost etcd and keeps its storage: its guests run on, until somebody wants them elsewhere."""

from dataclasses import replace
from typing import Any

import pytest

from leeward_controller.core import Policy
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.failover.model import Isolation, IsolationPolicy
from leeward_controller.services.instances import Target
from leeward_lab.simulated.network import CONTROLLERS, STORE
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story

MOVE = Policy(isolation=IsolationPolicy(Isolation.MOVE, after_s=30.0))


def isolate(story: Story, node: str) -> None:
    for other in (STORE, CONTROLLERS):
        story.cluster.network.cut(node, other)


def let_back(story: Story, node: str) -> None:
    for other in (STORE, CONTROLLERS):
        story.cluster.network.heal(node, other)


async def until_condition(story: Story, node: str, condition: NodeCondition, *, within_s: float) -> None:
    await story.until(lambda: story.condition(node) is condition, within_s=within_s, what=f"{node} {condition}")


async def begin(policy: Policy) -> Story:
    story = Story(policy=policy)
    await story.begin()
    await story.launched("web-1", node="host-a")
    await story.launched("bystander", node="host-b")
    return story


def proof_of(story: Story, node: str) -> ProofKind | None:
    core = story.core().core
    assert core is not None
    return next((stored.value.kind for stored in core.view.fences.values() if stored.value.node == node), None)


@pytest.mark.parametrize("policy", [Policy(), MOVE], ids=["keep", "move"])
def test_a_short_isolation_disturbs_nobody(policy: Policy) -> None:
    async def main() -> None:
        story = await begin(policy)
        isolate(story, "host-a")
        await until_condition(story, "host-a", NodeCondition.ISOLATED, within_s=10)
        await story.clock.sleep(15)
        let_back(story, "host-a")
        await until_condition(story, "host-a", NodeCondition.READY, within_s=10)
        assert not story.cluster.nodes["host-a"].killed_by_guard
        assert len([run for run in story.invariants.runs if run.node == "host-a"]) == 1
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_by_policy_guests_are_moved_by_poison_pill_and_the_node_comes_back_to_work() -> None:
    async def main() -> None:
        story = await begin(MOVE)
        isolate(story, "host-a")
        await story.until(lambda: proof_of(story, "host-a") is not None, within_s=60, what="a proof")
        assert proof_of(story, "host-a") is ProofKind.POISON_PILL
        await story.until(lambda: story.instance("web-1").node not in ("", "host-a"), within_s=10, what="it moved")
        await until_condition(story, "host-a", NodeCondition.EVACUATED, within_s=10)
        let_back(story, "host-a")
        await until_condition(story, "host-a", NodeCondition.QUARANTINED, within_s=10)
        await story.until(lambda: story.cluster.pool.pills == {}, within_s=10, what="the pill is withdrawn")
        await story.services().nodes.uncordon(Target("nodes/host-a"), ALICE)
        await story.launched("web-2", node="host-a")
        assert story.instance("bystander").node == "host-b"
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_node_that_is_back_before_it_took_its_pill_starts_again_what_it_ended() -> None:
    async def main() -> None:
        story = await begin(replace(MOVE, isolation=IsolationPolicy(Isolation.MOVE, after_s=0.0)))
        isolate(story, "host-a")
        await story.until(lambda: bool(story.cluster.pool.pills), within_s=30, what="a pill is left")
        let_back(story, "host-a")
        await until_condition(story, "host-a", NodeCondition.READY, within_s=10)
        await story.until(lambda: story.cluster.pool.pills == {}, within_s=10, what="the pill is withdrawn")
        await story.until(
            lambda: story.instance("web-1").state is InstanceState.ACTIVE and "web-1" in running_on(story, "host-a"),
            within_s=60,
            what="the guest runs",
        )
        assert proof_of(story, "host-a") is None
        story.check_settled()
        await story.end()

    run_virtually(main)


def running_on(story: Story, node: str) -> set[str]:
    return {story.narrator.names[uid] for uid, run in story.invariants.running.items() if run.node == node}


class _Lost(dict[str, Any]):
    """A place where what is left is never found."""

    def __setitem__(self, key: str, value: Any) -> None:
        pass


def test_help_is_asked_for_with_a_node_that_does_not_take_its_pill() -> None:
    async def main() -> None:
        story = await begin(MOVE)
        story.cluster.pool.pills = _Lost()
        isolate(story, "host-a")
        await story.until(
            lambda: "leeward node attest-fenced host-a" in story.node("host-a").reason, within_s=80, what="help wanted"
        )
        assert story.condition("host-a") is NodeCondition.ISOLATED
        assert "poison pill" in story.node("host-a").reason
        assert proof_of(story, "host-a") is None
        let_back(story, "host-a")
        await until_condition(story, "host-a", NodeCondition.READY, within_s=10)
        assert story.instance("web-1").node == "host-a"
        await story.end()

    run_virtually(main)


def test_a_leader_that_comes_later_leaves_a_pill_of_its_own() -> None:
    async def main() -> None:
        story = await begin(MOVE)
        isolate(story, "host-a")
        await story.until(lambda: bool(story.cluster.pool.pills), within_s=60, what="a pill is left")
        first = story.cluster.pool.pills["host-a"].pill_id
        await story.core().kill()
        await story.until(lambda: proof_of(story, "host-a") is not None, within_s=120, what="a proof")
        assert proof_of(story, "host-a") is ProofKind.POISON_PILL
        assert story.cluster.pool.pills["host-a"].pill_id != first
        await story.until(lambda: story.instance("web-1").node not in ("", "host-a"), within_s=10, what="it moved")
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_an_operator_has_an_isolated_node_fenced_without_any_device() -> None:
    async def main() -> None:
        story = await begin(Policy())
        isolate(story, "host-a")
        await until_condition(story, "host-a", NodeCondition.ISOLATED, within_s=10)
        begun = await story.services().node_operations.fence(Target("nodes/host-a"), ALICE, force=False)
        ended = await story.ended(begun.operation, within_s=60)
        assert ended.error is None
        assert proof_of(story, "host-a") is ProofKind.POISON_PILL
        await story.until(lambda: story.instance("web-1").node not in ("", "host-a"), within_s=10, what="it moved")
        await story.end()

    run_virtually(main)


def test_an_agent_that_dies_of_its_pill_is_proved_silent() -> None:
    async def main() -> None:
        story = await begin(MOVE)
        isolate(story, "host-a")
        await story.until(lambda: bool(story.cluster.pool.pills), within_s=60, what="a pill is left")
        await story.cluster.nodes["host-a"].kill_agent()
        await story.until(lambda: proof_of(story, "host-a") is not None, within_s=60, what="a proof")
        assert proof_of(story, "host-a") is ProofKind.SILENCE
        await story.until(lambda: story.instance("web-1").node not in ("", "host-a"), within_s=10, what="it moved")
        await story.end()

    run_virtually(main)
