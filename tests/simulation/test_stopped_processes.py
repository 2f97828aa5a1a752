"""A process that is stopped does nothing, and then goes on where it was, as after SIGSTOP and SIGCONT."""

import asyncio
import itertools

import pytest

from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import MigrateArguments, OperationPhase, OperationType
from leeward_lab.simulated.tasks import Life
from leeward_lab.virtual_time import Stuck, freeze, run_virtually, thaw
from tests.simulation.story import Story


def test_its_work_waits_and_its_timeouts_pass_late() -> None:
    seen: list[tuple[str, float]] = []

    async def work() -> None:
        clock = asyncio.get_running_loop()
        await asyncio.sleep(1.0)
        seen.append(("woke", clock.time()))
        try:
            async with asyncio.timeout(1.0):
                await asyncio.sleep(5.0)
        except TimeoutError:
            seen.append(("timed out", clock.time()))

    async def main() -> None:
        life = Life("one")
        life.spawn(work())
        await asyncio.sleep(0.5)
        freeze("one")
        await asyncio.sleep(9.5)
        assert seen == []
        thaw("one")
        await asyncio.sleep(2.0)
        assert seen == [("woke", 10.0), ("timed out", 11.0)]
        await life.end()

    run_virtually(main)


def test_a_stopped_agent_loses_its_lease_and_its_guard_kills() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        node = story.cluster.nodes["host-a"]
        freeze(node.agent_process)
        await story.until(
            lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=20.0, what="it is left"
        )
        assert [uid for _, uid in node.killed_by_guard] == [story.instance("web-1").uid]
        thaw(node.agent_process)
        quarantined = NodeCondition.QUARANTINED
        await story.until(lambda: story.condition("host-a") is quarantined, within_s=20.0, what="it is back")
        assert len(story.invariants.running) == 1
        await story.end()

    run_virtually(main)


def test_a_host_that_returns_does_not_hold_up_what_is_taken_from_it() -> None:
    """A migration is called off whose host comes back with another boot: its guest is not for it to start again."""

    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web-1", node="host-a")
        node, controllers = story.cluster.nodes["host-a"], story.cluster.controllers
        driver = next(each for name, each in sorted(controllers.items()) if name != story.narrator.leader)
        freeze(node.agent_process)
        wanted = MigrateArguments(node="host-b")
        migration = await story.submit("web-1", OperationType.MIGRATE, wanted, through=driver)
        fencing, fenced = NodeCondition.FENCING, NodeCondition.FENCED
        await story.until(lambda: story.condition("host-a") is fencing, within_s=20.0, what="it is lost")
        # Nobody calls it off until the other controller has taken it over, and by then the host is back.
        await driver.kill()
        await story.until(lambda: story.condition("host-a") is fenced, within_s=20.0, what="it is fenced")
        await node.power_off()
        thaw(node.agent_process)
        await story.power_on("host-a")
        assert (await story.ended(migration)).phase is OperationPhase.CANCELLED
        await story.until(lambda: story.instance("web-1").node != "host-a", within_s=10.0, what="it runs elsewhere")
        await story.until(lambda: not story.instance("web-1").current_operation, within_s=10.0, what="all has ended")
        assert len(story.invariants.running) == 1
        await story.end()

    run_virtually(main)


def test_work_that_never_waits_is_found() -> None:
    async def main() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(Stuck):
        run_virtually(main)
