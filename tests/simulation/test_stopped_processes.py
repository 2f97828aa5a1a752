"""A process that is stopped does nothing, and then goes on where it was, as after SIGSTOP and SIGCONT."""

import asyncio
import itertools

import pytest

from leeward_controller.domain.node import NodeCondition
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


def test_work_that_never_waits_is_found() -> None:
    async def main() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(Stuck):
        run_virtually(main)
