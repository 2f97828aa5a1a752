"""A controller dies at every single point of a failover and of a drill: it is still told once, whole, and truly."""

import asyncio

import pytest

from leeward.errors import LeewardError
from leeward_controller.domain.failover import FailoverKind, FailoverState, GuestOutcome
from leeward_controller.domain.node import NodeDuty
from leeward_controller.domain.operation import OperationPhase
from leeward_controller.records import FAILOVERS, OPERATIONS
from leeward_controller.services.instances import Target
from tests.simulation.crash import crash_everywhere
from tests.simulation.story import ALICE, Story

pytestmark = pytest.mark.timeout(600)


async def _launched(story: Story) -> None:
    await story.launched("web-1", node="host-a")


def test_failover() -> None:
    async def act(story: Story) -> None:
        await story.cluster.nodes["host-a"].power_off()

    async def check(story: Story) -> None:
        await story.until(
            lambda: [r.state for r in story.all_of(FAILOVERS)] == [FailoverState.RECOVERED],
            within_s=90.0,
            what="it is on record that all was restarted",
        )
        (record,) = story.all_of(FAILOVERS)
        assert record.proof is not None
        assert (record.node, record.to_restart, record.restarted) == ("host-a", 1, 1)
        assert record.last_restart_s is not None
        assert 0.0 < record.proof.seconds <= record.last_restart_s
        assert story.instance("web-1").node == record.guests[0].to_node
        await story.until(lambda: not story.unsettled(), within_s=30.0, what="all is settled")

    reached = crash_everywhere(prepare=_launched, act=act, check=check)
    assert any("start_guest" in what for what in reached)


def test_drill() -> None:
    async def act(story: Story) -> None:
        asking = asyncio.ensure_future(
            story.services().node_operations.drill(Target("nodes/host-a"), ALICE, parallelism=0)
        )
        done, _ = await asyncio.wait({asking}, timeout=20.0)
        if not done:
            asking.cancel()
        elif isinstance(error := asking.exception(), BaseException) and not isinstance(error, LeewardError):
            raise error

    async def check(story: Story) -> None:
        await story.until(lambda: not story.running_operations(), within_s=120.0, what="no operation is left")
        drills = [each for each in story.all_of(OPERATIONS) if each.node]
        if drills:
            await story.until(lambda: bool(story.all_of(FAILOVERS)), within_s=30.0, what="it is on record")
            (record,) = story.all_of(FAILOVERS)
            assert (record.kind, record.state) == (FailoverKind.DRILL, FailoverState.RECOVERED)
            assert [guest.outcome for guest in record.guests] == [GuestOutcome.BROUGHT_BACK]
            assert [each.phase for each in drills] == [OperationPhase.SUCCEEDED]
        assert story.instance("web-1").node == "host-a"
        assert story.node("host-a").duty is NodeDuty.IN_SERVICE
        assert story.node("host-a").moved_away == ()
        assert len(story.invariants.running) == 1

    reached = crash_everywhere(prepare=_launched, act=act, check=check)
    assert any("host-b" in what or "host-c" in what for what in reached)
