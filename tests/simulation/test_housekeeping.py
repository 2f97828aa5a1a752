"""What the leader does by itself, in a whole simulated cluster: backups, timers, guests that stop by themselves."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from leeward.agent.types import DiskFormat, GuestState
from leeward_controller.domain.instance import InstanceState, Resources
from leeward_controller.domain.operation import (
    DeleteArguments,
    Operation,
    OperationPhase,
    OperationType,
    PlainArguments,
    RebuildArguments,
    RescueArguments,
    ResizeArguments,
    ShelveArguments,
    StartArguments,
)
from leeward_controller.records import IMAGES, OPERATIONS
from leeward_controller.services.backup_policies import NewBackupPolicy, PolicySpec
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import DIGEST, IMAGE, Story

S, Do = InstanceState, OperationType
WEB = "projects/p/instances/web-1"


def told(main: Callable[[Story], Coroutine[Any, Any, None]], **cluster: Any) -> None:
    """Run a story in a cluster of its own; in the end an audit finds nothing."""

    async def run() -> None:
        story = Story(**cluster)
        await story.begin()
        await main(story)
        story.check()
        report = await story.services().audit.audit(repair=False, principal="admin:test")
        assert report.findings == (), story.text()
        await story.end()

    run_virtually(run)


async def succeeded(story: Story, name: str, wanted: OperationType, arguments: Any) -> Operation:
    ended = await story.ended(await story.submit(name, wanted, arguments))
    assert ended.phase is OperationPhase.SUCCEEDED, f"{ended.error}\n{story.text()}"
    return ended


def images(story: Story) -> list[str]:
    return [image.name.rpartition("/")[2] for image in story.all_of(IMAGES) if image.name != IMAGE]


def test_backups_are_taken_rotated_and_restored_whoever_leads() -> None:
    async def main(story: Story) -> None:
        await story.launched("web-1")
        spec = PolicySpec(schedule="*/5 * * * *", keep_count=2, instances=(WEB,))
        await story.services().backup_policies.create(NewBackupPolicy("projects/p", "often", spec))
        await story.until(lambda: len(images(story)) == 2, within_s=720.0, what="two backups")
        await story.core().kill()
        await story.until(
            lambda: images(story) == ["web-1-often-20300101t001500", "web-1-often-20300101t002000"],
            within_s=600.0,
            what="the newest two are left",
        )
        taken = [each for each in story.all_of(OPERATIONS) if each.type is Do.SNAPSHOT]
        assert len(taken) == 4
        assert all(each.requested_by == "leeward:backup" for each in taken)
        assert story.instance("web-1").state is S.ACTIVE
        (latest,) = [image for image in story.all_of(IMAGES) if image.name.endswith("002000")]
        await succeeded(story, "web-1", Do.REBUILD, RebuildArguments(latest.name, latest.digest, latest.format))
        assert story.instance("web-1").image == latest.name

    told(main, nodes=1)


def test_times_that_pass_are_acted_upon() -> None:
    async def main(story: Story) -> None:
        for name in ("grown", "shelved", "deleted"):
            await story.launched(name)
        await succeeded(story, "grown", Do.RESIZE, ResizeArguments("large", Resources(2, 2048, 4), "", 40.0))
        await succeeded(story, "shelved", Do.SHELVE, ShelveArguments("projects/p/images/shelf", 60.0, 0.0))
        await succeeded(story, "deleted", Do.DELETE, DeleteArguments(retention_s=80.0))
        resize, shelf, deletion = (
            story.instance("grown").resize,
            story.instance("shelved").shelf,
            story.instance("deleted").deletion,
        )
        assert resize is not None
        assert shelf is not None
        assert deletion is not None
        for when, done in (
            (resize.confirm_time, lambda: story.instance("grown").state is S.ACTIVE),
            (shelf.offload_time, lambda: story.instance("shelved").state is S.SHELVED_OFFLOADED),
            (deletion.expire_time, lambda: not story.has_instance("deleted")),
        ):
            assert when is not None
            assert not done()
            await story.clock.sleep((when - story.clock.now()).total_seconds())
            await story.until(done, within_s=2.0, what="the timer")

    told(main)


@pytest.mark.parametrize("cause", ["killed", "host rebooted"])
def test_a_guest_that_was_killed_is_again_as_it_was(cause: str) -> None:
    async def main(story: Story) -> None:
        for name in ("active", "paused", "grown", "rescued", "stopped"):
            await story.launched(name, node="host-a")
        await succeeded(story, "paused", Do.PAUSE, PlainArguments())
        await succeeded(story, "grown", Do.RESIZE, ResizeArguments("large", Resources(2, 2048, 4), "host-a"))
        await succeeded(story, "rescued", Do.RESCUE, RescueArguments(IMAGE, DIGEST, DiskFormat.RAW, 0.0))
        before = {name: story.instance(name) for name in ("active", "paused", "grown", "rescued")}
        host = story.cluster.nodes["host-a"]
        if cause == "killed":
            for instance in before.values():
                host.host.guest_crash(instance.uid)
        else:
            await host.power_off()
            await story.power_on("host-a")

        def all_back() -> bool:
            guests = host.host.guests
            return all(
                story.instance(name).state is instance.state
                and not story.instance(name).current_operation
                and instance.uid in guests
                and guests[instance.uid].state is instance.wanted_guest
                for name, instance in before.items()
            )

        await story.until(all_back, within_s=60.0, what="all guests are as they were")
        assert host.host.guests[before["paused"].uid].state is GuestState.PAUSED

    told(main)


def test_a_guest_that_shut_itself_down_is_left_so() -> None:
    async def main(story: Story) -> None:
        for name in ("active", "grown", "rescued"):
            await story.launched(name, node="host-a")
        await succeeded(story, "grown", Do.RESIZE, ResizeArguments("large", Resources(2, 2048, 4), "host-a"))
        await succeeded(story, "rescued", Do.RESCUE, RescueArguments(IMAGE, DIGEST, DiskFormat.RAW, 0.0))
        host = story.cluster.nodes["host-a"].host
        names = ("active", "grown", "rescued")
        for name in names:
            host.guest_power_off(story.instance(name).uid)
        await story.clock.sleep(60.0)
        assert [story.instance(name).state for name in names] == [S.STOPPED, S.RESIZED, S.RESCUED]
        assert not any(host.guests[story.instance(name).uid].active for name in names)
        await succeeded(story, "grown", Do.CONFIRM_RESIZE, PlainArguments())
        assert story.instance("grown").state is S.STOPPED
        await succeeded(story, "rescued", Do.UNRESCUE, PlainArguments())
        await succeeded(story, "active", Do.START, StartArguments())

    told(main)
