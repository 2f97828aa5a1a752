"""BMCs that are dead, slow, closed to us or liars: a proof of another kind, or a clear word to whoever can help."""

from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from leeward_agent.storage.memory import PoolFault
from leeward_controller.domain.node import FenceProof, Node, NodeCondition, ProofKind
from leeward_controller.domain.operation import Operation
from leeward_controller.failover.power import FIRST_RETRY_S, LAST_RETRY_S
from leeward_controller.ports import FenceOutcome
from leeward_controller.records import FENCES
from leeward_controller.services.instances import Target
from leeward_lab.simulated.cluster import POOL_ID
from leeward_lab.simulated.network import CONTROLLERS, STORE
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story

Answer = Callable[[Story], Awaitable[FenceOutcome]]
REFUSED = "connection refused"


class Bmc:
    """The device of host-a, which answers as a test has it. `asked_s` are the times at which it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked_s: list[float] = []
        self.told: list[str] = []
        self.story: Story | None = None

    def covers(self, node: str) -> bool:
        return node == "host-a"

    async def power_off(self, node: str) -> FenceOutcome:
        assert self.story is not None
        assert node == "host-a"
        self.asked_s.append(self.story.now_s)
        return await self.answer(self.story)

    def on_record(self, _: object, after: object) -> None:
        if isinstance(after, Node) and after.node == "host-a":
            self.told.append(after.reason)


async def refuses(story: Story) -> FenceOutcome:
    await story.clock.sleep(0.1)
    return FenceOutcome(False, REFUSED)


async def hangs(story: Story) -> FenceOutcome:
    await story.clock.sleep(20.0)
    return FenceOutcome(False, "no answer within 20 s")


async def obeys(story: Story) -> FenceOutcome:
    await story.clock.sleep(0.3)
    host = story.cluster.nodes["host-a"]
    if host.host.powered:
        await host.power_off()
    return FenceOutcome(True, "status said off twice")


async def lies_after_a_while(story: Story) -> FenceOutcome:
    await story.clock.sleep(1.9)
    return FenceOutcome(True, "status said off twice")


async def begin(answer: Answer, *, nodes: int = 3) -> tuple[Story, Bmc]:
    bmc = Bmc(answer)
    story = Story(nodes=nodes)
    bmc.story = story
    story.narrator.listen(bmc.on_record)
    await story.begin(fence=bmc)
    await story.launched("web-1", node="host-a")
    return story, bmc


async def lose_guard_and_die(story: Story) -> None:
    """What silence proves nothing about."""
    story.cluster.nodes["host-a"].lose_guard()
    await story.until(lambda: not story.node("host-a").report.guard_armed, within_s=5, what="it tells of its guard")
    await story.cluster.nodes["host-a"].power_off()


def proof(story: Story) -> FenceProof | None:
    """That the boot of host-a which is known is over."""
    node, fences = story.node("host-a"), story.all_of(FENCES)
    return next((each for each in fences if (each.node, each.boot_id) == (node.node, node.report.boot_id)), None)


async def until_proved(story: Story, kind: ProofKind, *, within_s: float) -> FenceProof:
    await story.until(lambda: proof(story) is not None, within_s=within_s, what="a proof")
    found = proof(story)
    assert found is not None
    assert found.kind is kind
    return found


async def until_moved(story: Story) -> None:
    await story.until(lambda: story.instance("web-1").node not in ("", "host-a"), within_s=10, what="it moved")
    await story.until(lambda: not story.running_operations(), within_s=10, what="all operations end")
    story.check_settled()


async def until_help_is_asked_for(story: Story, why: str) -> None:
    await story.until(lambda: why in story.node("host-a").reason, within_s=60, what=f"{why!r} is told")
    assert "leeward node attest-fenced host-a" in story.node("host-a").reason


async def fenced(story: Story, *, within_s: float) -> Operation:
    begun = await story.services().node_operations.fence(Target("nodes/host-a"), ALICE, force=False)
    return await story.ended(begun.operation, within_s=within_s)


@pytest.mark.parametrize("answer", [refuses, hangs])
def test_silence_is_the_proof_where_the_bmc_is_none(answer: Answer) -> None:
    async def main() -> None:
        story, bmc = await begin(answer)
        await story.cluster.nodes["host-a"].power_off()
        found = await until_proved(story, ProofKind.SILENCE, within_s=12)
        assert len(bmc.asked_s) == 1
        assert (REFUSED in found.evidence) is (answer is refuses)
        await until_moved(story)
        await story.end()

    run_virtually(main)


def test_a_host_that_is_off_already_is_proved_at_once_by_its_bmc() -> None:
    async def main() -> None:
        story, _ = await begin(obeys)
        await lose_guard_and_die(story)
        await until_proved(story, ProofKind.POWER_OFF, within_s=7)
        await until_moved(story)
        await story.end()

    run_virtually(main)


@pytest.mark.parametrize("answer", [refuses, hangs])
def test_a_bmc_that_fails_is_asked_at_a_deliberate_pace_and_an_operator_is_asked_for_help(answer: Answer) -> None:
    async def main() -> None:
        story, bmc = await begin(answer)
        await lose_guard_and_die(story)
        await until_help_is_asked_for(story, REFUSED if answer is refuses else "no answer within 20 s")
        assert "guard was not armed" in story.node("host-a").reason
        bmc.told.clear()
        await story.clock.sleep(250)
        gaps = [later - earlier for earlier, later in pairwise(bmc.asked_s)]
        assert min(gaps) >= FIRST_RETRY_S
        assert max(gaps) <= LAST_RETRY_S + 20 + 1
        assert all(later >= earlier - 1 for earlier, later in pairwise(gaps))
        assert bmc.told == [], "the same is told once"
        assert proof(story) is None
        assert story.instance("web-1").node == "host-a"

        boot_id = story.node("host-a").report.boot_id
        nodes = story.services().nodes
        await nodes.attest_fenced(Target("nodes/host-a"), ALICE, boot_id=boot_id, evidence="I was there")
        await until_moved(story)
        await story.end()

    run_virtually(main)


def test_a_bmc_that_is_mended_later_gives_the_proof() -> None:
    async def main() -> None:
        story, bmc = await begin(refuses)
        await lose_guard_and_die(story)
        await until_help_is_asked_for(story, REFUSED)
        await story.clock.sleep(300)
        bmc.answer = obeys
        await until_proved(story, ProofKind.POWER_OFF, within_s=LAST_RETRY_S + 2)
        await until_moved(story)
        await story.end()

    run_virtually(main)


def test_a_node_that_comes_back_begins_anew_with_its_bmc() -> None:
    async def main() -> None:
        story, bmc = await begin(refuses)
        await lose_guard_and_die(story)
        await story.until(lambda: len(bmc.asked_s) >= 5, within_s=200, what="it was asked a few times")
        await story.power_on("host-a")
        await story.until(lambda: story.condition("host-a") is NodeCondition.READY, within_s=10, what="it is back")
        await story.until(lambda: story.node("host-a").report.guard_armed, within_s=10, what="it is guarded")
        bmc.answer = obeys
        await story.cluster.nodes["host-a"].power_off()
        await until_proved(story, ProofKind.POWER_OFF, within_s=7)
        await story.end()

    run_virtually(main)


def test_what_the_boot_before_left_in_the_slot_does_not_prove_the_present_one_over() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        await story.cluster.nodes["host-a"].power_off()
        await story.clock.sleep(3)
        await story.power_on("host-a")
        boot_id = story.cluster.nodes["host-a"].boot_id
        await story.until(
            lambda: "web-1" in running_on_a(story) and story.node("host-a").report.boot_id == boot_id,
            within_s=30,
            what="its guest runs again",
        )
        assert {slot.boot_id for slot in story.cluster.pool.slots.values() if slot.node == "host-a"} != {boot_id}
        # The agent dies before its slot is its own; the guest runs on until the guard ends it.
        await story.cluster.nodes["host-a"].kill_agent()
        found = await until_proved(story, ProofKind.SILENCE, within_s=20)
        assert found.boot_id == boot_id
        await until_moved(story)
        await story.end()

    run_virtually(main)


def test_a_heartbeat_belies_a_bmc_that_says_off() -> None:
    async def main() -> None:
        story, bmc = await begin(lies_after_a_while)
        partition(story, "host-a")
        await story.until(lambda: bool(bmc.asked_s), within_s=10, what="its BMC is asked")
        heal(story, "host-a")
        await story.until(lambda: story.condition("host-a") is NodeCondition.READY, within_s=1.8, what="it is back")
        await story.clock.sleep(60)
        assert len(bmc.asked_s) == 1
        assert not any("proof of" in line for line in story.lines)
        await story.until(lambda: "web-1" in running_on_a(story), within_s=30, what="its guest runs again")
        story.check_settled()
        await story.end()

    run_virtually(main)


def partition(story: Story, node: str) -> None:
    story.cluster.pool.faults[node] = PoolFault.HANGING
    story.cluster.nodes[node].host.lose_storage(POOL_ID)
    for other in (STORE, CONTROLLERS):
        story.cluster.network.cut(node, other)


def heal(story: Story, node: str) -> None:
    story.cluster.pool.faults.pop(node)
    story.cluster.nodes[node].host.restore_storage(POOL_ID)
    for other in (STORE, CONTROLLERS):
        story.cluster.network.heal(node, other)


def running_on_a(story: Story) -> set[str]:
    return {story.narrator.names[uid] for uid, run in story.invariants.running.items() if run.node == "host-a"}


def test_where_nobody_can_tell_of_its_storage_an_operator_is_asked_for_help() -> None:
    async def main() -> None:
        story, _ = await begin(refuses, nodes=1)
        await story.cluster.nodes["host-a"].power_off()
        await until_help_is_asked_for(story, "no other node can tell")
        assert REFUSED in story.node("host-a").reason
        await story.power_on("host-a")
        await story.until(lambda: story.condition("host-a") is NodeCondition.READY, within_s=10, what="it is back")
        await story.until(lambda: "web-1" in running_on_a(story), within_s=60, what="its guest runs again")
        await story.end()

    run_virtually(main)


@pytest.mark.parametrize("answer", [refuses, hangs])
def test_fencing_on_request_ends_and_tells_all_that_was_tried(answer: Answer) -> None:
    async def main() -> None:
        story, _ = await begin(answer)
        await lose_guard_and_die(story)
        await until_help_is_asked_for(story, "guard was not armed")
        ended = await fenced(story, within_s=60)
        assert ended.error is not None
        assert ended.error.reason == "NO_PROOF"
        assert "power: " in ended.error.message
        assert "silence: its guard was not armed" in ended.error.message
        await story.end()

    run_virtually(main)
