"""A controller dies at every single point of launch, live migration and evacuation; the other one finishes the work."""

import asyncio
import contextlib

import pytest

from leeward.errors import LeewardError
from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.node import NodeCondition
from leeward_controller.domain.operation import LiveMigrateArguments, OperationPhase, OperationType
from tests.simulation.crash import crash_everywhere
from tests.simulation.story import ALICE, Story

pytestmark = pytest.mark.timeout(300)


async def _nothing(_: Story) -> None:
    return


async def _quiet(story: Story, *names: str) -> None:
    await story.until(
        lambda: all(not story.instance(name).current_operation for name in names if story.has_instance(name)),
        within_s=60.0,
        what="no operation is left",
    )


async def _ask(story: Story, asking: "asyncio.Future[object]") -> None:
    """The client's call, whose controller may die before it answers: then nothing may be half made."""
    done, _ = await asyncio.wait({asking}, timeout=20.0)
    if not done:
        asking.cancel()
    elif isinstance(error := asking.exception(), BaseException) and not isinstance(error, LeewardError):
        raise error


def test_launch() -> None:
    async def act(story: Story) -> None:
        await _ask(story, asyncio.ensure_future(story.create("web-1", node="host-b")))

    async def check(story: Story) -> None:
        await _quiet(story, "web-1")
        if story.has_instance("web-1"):
            assert story.instance("web-1").state is InstanceState.ACTIVE, story.text()
            assert story.instance("web-1").node == "host-b"
        assert len(story.invariants.runs) == int(story.has_instance("web-1"))

    reached = crash_everywhere(prepare=_nothing, act=act, check=check)
    assert "host-b after start_guest" in reached


def test_live_migration() -> None:
    async def prepare(story: Story) -> None:
        await story.launched("web-1", node="host-a")

    async def act(story: Story) -> None:
        asking = story.submit("web-1", OperationType.LIVE_MIGRATE, LiveMigrateArguments(node="host-b"))
        await _ask(story, asyncio.ensure_future(asking))

    async def check(story: Story) -> None:
        await _quiet(story, "web-1")
        assert story.instance("web-1").state is InstanceState.ACTIVE
        assert len(story.invariants.running) == 1

    reached = crash_everywhere(prepare=prepare, act=act, check=check)
    assert "host-b after claim_run_epoch" in reached


def test_evacuation() -> None:
    async def prepare(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        await story.launched("web-2", node="host-a")

    async def act(story: Story) -> None:
        await story.cluster.nodes["host-a"].power_off()

    async def check(story: Story) -> None:
        await story.until(
            lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=60.0, what="the node is emptied"
        )
        await _quiet(story, "web-1", "web-2")
        assert {story.instance(name).node for name in ("web-1", "web-2")} <= {"host-b", "host-c"}
        assert len(story.invariants.running) == 2

    reached = crash_everywhere(prepare=prepare, act=act, check=check)
    assert any("start_guest" in what for what in reached)


def test_evacuation_that_is_cancelled_then() -> None:
    """Whoever takes over has to undo what the one that died has done, also in a step of which nothing is recorded."""

    async def prepare(story: Story) -> None:
        await story.launched("web-1", node="host-a")

    async def act(story: Story) -> None:
        await story.cluster.nodes["host-a"].power_off()
        await story.until(
            lambda: bool(story.instance("web-1").current_operation), within_s=30.0, what="the evacuation begins"
        )
        # One that dies in it leaves a while in which it has acted and the other one does not know.
        await story.clock.sleep(0.2)
        for operation in story.running_operations():
            with contextlib.suppress(LeewardError):
                await story.services().operations.cancel(operation.name, ALICE)
            ended = await story.ended(operation)
            if ended.phase is OperationPhase.CANCELLED:
                assert not story.invariants.running, "what was called off was left running"

    async def check(story: Story) -> None:
        await story.until(
            lambda: story.condition("host-a") is NodeCondition.EVACUATED, within_s=90.0, what="the node is emptied"
        )
        await _quiet(story, "web-1")
        assert story.instance("web-1").node in {"host-b", "host-c"}
        assert len(story.invariants.running) == 1

    reached = crash_everywhere(prepare=prepare, act=act, check=check)
    assert any("start_guest" in what for what in reached)
