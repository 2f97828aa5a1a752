"""Whole failovers on virtual time: who comes back before whom, and how many are started on a host at a time."""

import asyncio
from datetime import timedelta

import pytest

from leeward.agent.types import GuestProbe, ProbeKind
from leeward_controller.core import Policy
from leeward_controller.domain.instance import Readiness, RestartPriority
from leeward_controller.domain.operation import DeleteArguments, Operation, OperationPhase, OperationType
from leeward_controller.failover.order import RestartPolicy
from leeward_controller.records import FAILOVERS, OPERATIONS
from leeward_controller.services.instances import InstanceChanges, Target
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, Story

pytestmark = pytest.mark.timeout(120)

_NODE_MEMORY_MIB = 16384


async def _launch(story: Story, name: str, priority: RestartPriority, *, memory_mib: int = 1024) -> None:
    ended = await story.ended(await story.create(name, node="host-a", memory_mib=memory_mib))
    assert ended.error is None, ended.error
    target = Target(f"projects/p/instances/{name}")
    await story.services().instances.records.update(target, InstanceChanges(restart_priority=priority), ALICE)


async def _cut_power(story: Story, *names: str) -> None:
    story.begin_counting()
    await story.cluster.nodes["host-a"].power_off()
    await story.until(
        lambda: all(story.instance(n).node != "host-a" and not story.instance(n).current_operation for n in names),
        within_s=60.0,
        what=f"{', '.join(names)} run elsewhere",
    )


def _evacuations(story: Story, name: str) -> list[Operation]:
    found = [
        each
        for each in story.all_of(OPERATIONS)
        if each.type is OperationType.EVACUATE and each.instance == f"projects/p/instances/{name}"
    ]
    return sorted(found, key=lambda each: each.create_time)


def test_each_priority_comes_back_after_those_above_it() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await _launch(story, "app", RestartPriority.LOW)
        await _launch(story, "cache", RestartPriority.HIGHEST)
        await _launch(story, "database", RestartPriority.HIGHEST)
        await _launch(story, "web", RestartPriority.MEDIUM)
        await _cut_power(story, "app", "cache", "database", "web")
        first, second, third, fourth = (_evacuations(story, name)[0] for name in ("cache", "database", "web", "app"))
        assert second.create_time < (first.end_time or second.create_time), "those of one priority do not wait"
        assert first.end_time is not None
        assert second.end_time is not None
        assert third.end_time is not None
        assert third.create_time >= max(first.end_time, second.end_time)
        assert fourth.create_time >= third.end_time
        # What waiting costs is a look of the watch over the nodes for each priority.
        assert fourth.create_time - max(first.end_time, second.end_time) < timedelta(seconds=1.5)
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="all is well")
        await story.end()

    run_virtually(main)


async def _launch_database(story: Story, *, timeout_s: float = 30.0) -> None:
    await _launch(story, "database", RestartPriority.HIGHEST)
    readiness = Readiness(GuestProbe(ProbeKind.GUEST_AGENT), timeout_s)
    changes = InstanceChanges(changes_readiness=True, readiness=readiness)
    await story.services().instances.records.update(Target("projects/p/instances/database"), changes, ALICE)


def _uid(story: Story, name: str) -> str:
    return story.instance(name).uid


def test_what_needs_a_database_begins_when_it_answers() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await _launch_database(story)
        await _launch(story, "web", RestartPriority.MEDIUM)
        await _cut_power(story, "database", "web")
        first, second = _evacuations(story, "database")[0], _evacuations(story, "web")[0]
        assert [step.step for step in first.history][-2:] == ["restart", "await_ready"]
        # A simulated guest answers two seconds after its start.
        ready = first.history[-1]
        assert (ready.outcome, 1.5 < ready.seconds < 3.5) == ("done", True), ready
        assert first.end_time is not None
        assert second.create_time >= first.end_time
        (record,) = story.all_of(FAILOVERS)
        guests = {guest.instance.rpartition("/")[2]: guest for guest in record.guests}
        assert guests["database"].ready_s == ready.seconds
        assert guests["web"].ready_s is None
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="all is well")
        await story.end()

    run_virtually(main)


def test_one_that_is_not_ready_in_time_is_waited_for_no_longer() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await _launch_database(story, timeout_s=5.0)
        await _launch(story, "web", RestartPriority.MEDIUM)
        for node in ("host-b", "host-c"):
            story.cluster.nodes[node].host.silent.add(_uid(story, "database"))
        await _cut_power(story, "database", "web")
        first, second = _evacuations(story, "database")[0], _evacuations(story, "web")[0]
        assert first.phase is OperationPhase.SUCCEEDED
        assert first.history[-1].outcome == "not ready within 5 s: nothing answers"
        assert timedelta(seconds=4) < second.create_time - first.create_time < timedelta(seconds=8)
        (record,) = story.all_of(FAILOVERS)
        assert record.restarted == 2
        assert [guest.error for guest in record.guests] == ["not ready within 5 s: nothing answers", ""]
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="all is well")
        await story.end()

    run_virtually(main)


def test_whoever_leads_next_waits_as_well() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await _launch_database(story, timeout_s=60.0)
        await _launch(story, "web", RestartPriority.MEDIUM)
        silent = [story.cluster.nodes[node].host.silent for node in ("host-b", "host-c")]
        for hosts in silent:
            hosts.add(_uid(story, "database"))
        await story.cluster.nodes["host-a"].power_off()
        await story.until(lambda: story.instance("database").node != "host-a", within_s=30.0, what="it was restarted")
        leader = next(c for c in story.cluster.controllers.values() if c.core and c.core.leadership.epoch)
        await leader.kill()
        await story.clock.sleep(20.0)
        assert story.instance("web").node == "host-a", "it waits"
        for hosts in silent:
            hosts.clear()
        await story.until(lambda: story.instance("web").node != "host-a", within_s=10.0, what="its turn has come")
        await story.until(lambda: not story.unsettled(), within_s=20.0, what="all is well")
        await story.end()

    run_virtually(main)


def test_one_that_is_deleted_while_it_is_awaited_is_gone_at_once() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await _launch_database(story, timeout_s=600.0)
        for node in ("host-b", "host-c"):
            story.cluster.nodes[node].host.silent.add(_uid(story, "database"))
        await story.cluster.nodes["host-a"].power_off()
        await story.until(lambda: story.instance("database").node != "host-a", within_s=30.0, what="it was restarted")
        began_s = story.now_s
        deleted = await story.ended(await story.submit("database", OperationType.DELETE, DeleteArguments()))
        assert deleted.error is None, deleted.error
        assert story.now_s - began_s < 3.0
        await story.until(lambda: not story.unsettled(), within_s=20.0, what="all is well")
        await story.end()

    run_virtually(main)


def test_one_that_finds_no_place_holds_up_nobody() -> None:
    async def main() -> None:
        story = Story(node_memory_mib=_NODE_MEMORY_MIB)
        await story.begin()
        for number, node in enumerate(("host-b", "host-c")):
            ended = await story.ended(await story.create(f"big-{number}", node=node, memory_mib=8192))
            assert ended.error is None, ended.error
        await _launch(story, "huge", RestartPriority.HIGHEST, memory_mib=10_000)
        await _launch(story, "web", RestartPriority.LOWEST)
        await _cut_power(story, "web")
        (refused,) = _evacuations(story, "huge")
        assert refused.phase is OperationPhase.FAILED
        assert refused.error is not None
        assert refused.error.reason == "NO_NODE_FITS"
        assert story.now_s - story._began_s < 15.0
        await story.end()

    run_virtually(main)


def test_a_start_that_hangs_holds_up_the_others_for_a_bounded_time() -> None:
    hanging: list[float] = []

    async def main() -> None:
        story = Story(controllers=1, policy=Policy(restarts=RestartPolicy(tier_wait_s=20.0)))

        async def hook(_node: str, method: str) -> None:
            if hanging and story.now_s < hanging[0] and method == "before claim_run_epoch":
                await asyncio.sleep(hanging[0] - story.now_s)

        await story.begin(agent_hook=hook)
        await _launch(story, "database", RestartPriority.HIGHEST)
        await _launch(story, "web", RestartPriority.MEDIUM)
        hanging.append(story.now_s + 45.0)
        await _cut_power(story, "database", "web")
        first, second = _evacuations(story, "database")[0], _evacuations(story, "web")[0]
        waited = second.create_time - first.create_time
        assert timedelta(seconds=20) <= waited < timedelta(seconds=21)
        await story.until(lambda: not story.unsettled(), within_s=30.0, what="all is well")
        await story.end()

    run_virtually(main)


@pytest.mark.parametrize(
    ("policy", "most_on_one", "most"),
    [(RestartPolicy(parallel_starts_per_node=2), 2, 4), (RestartPolicy(parallel_starts=3), 3, 3)],
    ids=["on a host", "in all"],
)
def test_few_are_started_at_a_time(policy: RestartPolicy, most_on_one: int, most: int) -> None:
    names = [f"web-{number}" for number in range(9)]

    async def main() -> None:
        story = Story(policy=Policy(restarts=policy))
        await story.begin()
        for name in names:
            await _launch(story, name, RestartPriority.MEDIUM)
        await _cut_power(story, *names)
        evacuations = [_evacuations(story, name)[0] for name in names]
        for each in evacuations:
            beside = [
                other
                for other in evacuations
                if other.end_time is not None and other.create_time <= each.create_time < other.end_time
            ]
            assert len(beside) <= most, story.text()
            there = [other for other in beside if other.work.target_node == each.work.target_node]
            assert len(there) <= most_on_one, story.text()
        hosts = [story.instance(name).node for name in names]
        assert sorted(hosts.count(host) for host in set(hosts)) == [4, 5]
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="all is well")
        await story.end()

    run_virtually(main)


def test_what_leaves_a_long_list_is_dropped_from_it_many_at_a_time() -> None:
    names = [f"web-{number:03}" for number in range(80)]

    async def main() -> None:
        story = Story(nodes=6, node_vcpus=64, node_memory_mib=2**20)
        await story.begin()
        for operation in [await story.create(name, node="host-a") for name in names]:
            assert (await story.ended(operation)).error is None
        before = len(story.allocations()["host-a"].reservations)
        assert before == 80
        await _cut_power(story, *names)
        await story.until(lambda: not story.unsettled(), within_s=10.0, what="nothing is held on the dead host")
        assert story.allocations()["host-a"].reservations == ()
        await story.end()

    run_virtually(main)
