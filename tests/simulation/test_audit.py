"""Drift that is injected by hand is found, explained and mended; a cluster at work has none."""

from dataclasses import replace
from typing import Any

from leeward import keys
from leeward.agent.types import Caller, DiskFormat, ImageFile
from leeward_controller.audit.model import FindingKind
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.node import NodeAllocation, Reservation
from leeward_controller.domain.operation import (
    LiveMigrateArguments,
    OperationType,
    PlainArguments,
    ResizeArguments,
    StartArguments,
    StopArguments,
)
from leeward_controller.records import ALLOCATIONS, INSTANCES, Commit, Kind, Records, Stored
from leeward_controller.services.audit import AuditReport
from leeward_lab.simulated.cluster import POOL_ID
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import Story

K = FindingKind
NOBODYS = "cd" * 32
BY_HAND = Caller("operations/by-hand", "by-hand", 1)


async def audited(story: Story, *, repair: bool = False) -> AuditReport:
    return await story.services().audit.audit(repair=repair, principal="admin:test")


def kinds(report: AuditReport) -> list[FindingKind]:
    return sorted(each.finding.kind for each in report.findings)


class Vandal:
    """Brings a cluster out of order."""

    def __init__(self, story: Story) -> None:
        self.story = story
        core = story.core().core
        assert core is not None
        self.records: Records = core.records

    async def instance(self, name: str, **changes: Any) -> None:
        """Change an instance's record."""
        stored = await self._stored(INSTANCES, keys.instance(f"projects/p/instances/{name}"))
        await self.records.commit(Commit().replace(stored, replace(stored.value, **changes)))

    async def allocation(self, node: str, change: Any) -> None:
        """Change what is held on a node."""
        key = keys.allocation(node)
        stored = await self.records.get(ALLOCATIONS, key) or Stored(key, NodeAllocation(node), 0, 0)
        await self.records.commit(Commit().replace(stored, change(stored.value)))

    async def _stored(self, kind: Kind[Any], key: str) -> Stored[Any]:
        stored = await self.records.get(kind, key)
        assert stored is not None
        return stored

    async def guest(self, instance: Instance, node: str) -> None:
        """Have a guest of no instance run on a node, with a disk of its own."""
        ghost = replace(instance.guest_spec(), uid="ghost", name="projects/p/instances/ghost")
        agent = self.story.cluster.nodes[node].agent
        assert agent is not None
        await agent.create_disk(BY_HAND, spec=ghost)
        await agent.claim_run_epoch(BY_HAND, spec=ghost)
        await agent.start_guest(BY_HAND, spec=ghost)


def test_a_cluster_at_work_and_at_rest_has_no_drift() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        for number in range(3):
            await story.launched(f"web-{number}")
        await story.ended(await story.submit("web-0", OperationType.SUSPEND, PlainArguments()))
        await story.ended(
            await story.submit("web-1", OperationType.RESIZE, ResizeArguments("large", Resources(2, 2048, 4)))
        )
        assert kinds(await audited(story)) == []
        moving = await story.submit("web-2", OperationType.LIVE_MIGRATE, LiveMigrateArguments())
        while not story.operation(moving.id).phase.ended:
            assert kinds(await audited(story)) == []
            await story.clock.sleep(0.05)
        report = await audited(story)
        assert (kinds(report), dict(report.unreached)) == ([], {})
        await story.end()

    run_virtually(main)


def test_drift_is_found_and_mended() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web", node="host-a")
        await story.launched("db", node="host-b")
        await story.ended(await story.submit("db", OperationType.STOP, StopArguments(grace_period_s=0.0)))
        web, db, vandal = story.instance("web"), story.instance("db"), Vandal(story)
        gone = Reservation("gone", "projects/p/instances/gone", 1, 512, 1, POOL_ID)
        await vandal.allocation("host-a", lambda held: NodeAllocation("host-a", (replace(held.of(web.uid), vcpus=7),)))
        await vandal.allocation("host-b", lambda _: NodeAllocation("host-b", (gone,)))
        await vandal.allocation("host-c", lambda held: held.with_reservation(replace(gone, instance_uid=web.uid)))
        await vandal.guest(web, "host-c")
        await vandal.instance("db", current_operation="operations/" + "a" * 26, run_epoch=db.run_epoch)
        story.cluster.pool.run_epochs[db.uid] = replace(
            story.cluster.pool.run_epochs[db.uid], epoch=db.run_epoch + 3, node="host-c"
        )
        found = await audited(story)
        assert kinds(found) == sorted(
            [
                K.RESERVATION_OF_WRONG_SIZE,
                K.RESERVATION_OF_NO_INSTANCE,
                K.RESERVATION_ON_WRONG_NODE,
                K.INSTANCE_WITHOUT_RESERVATION,
                K.GUEST_OF_NO_INSTANCE,
                K.DISK_OF_NO_INSTANCE,
                K.RUN_EPOCH_AHEAD,
                K.OPERATION_STILL_CURRENT,
            ]
        )
        assert all(each.finding.explanation and each.finding.remedy for each in found.findings)
        mended = await audited(story, repair=True)
        assert kinds(mended) == kinds(found)
        left = [(each.finding.kind, each.trouble) for each in mended.findings if not each.repaired]
        assert left == [(K.DISK_OF_NO_INSTANCE, "it is deleted only when it is older than 60 minutes")]
        assert kinds(await audited(story)) == [K.DISK_OF_NO_INSTANCE]
        started = await story.ended(await story.submit("db", OperationType.START, StartArguments()))
        assert started.error is None
        assert story.instance("db").state is InstanceState.ACTIVE
        await story.end()

    run_virtually(main)


def test_files_of_nobody_go_when_they_are_old() -> None:
    async def main() -> None:
        story = Story(nodes=1, controllers=1)
        await story.begin()
        await story.launched("web")
        await Vandal(story).guest(story.instance("web"), "host-a")
        story.cluster.pool.images[NOBODYS] = ImageFile(NOBODYS, 1, 1, DiskFormat.RAW)
        assert kinds(await audited(story, repair=True)) == [K.DISK_OF_NO_INSTANCE, K.GUEST_OF_NO_INSTANCE]
        await story.clock.sleep(3600.0)
        # The image file is for the sweep, which comes every ten minutes; the folder waits for an admin.
        await story.until(lambda: NOBODYS not in story.cluster.pool.images, within_s=700.0, what="the sweep")
        assert [each.repaired for each in (await audited(story, repair=True)).findings] == [True]
        assert kinds(await audited(story)) == []
        story.check_settled()
        await story.end()

    run_virtually(main)


def test_a_node_that_cannot_be_asked_is_told_and_not_judged() -> None:
    async def main() -> None:
        story = Story()
        await story.begin()
        await story.launched("web", node="host-a")
        await story.cluster.nodes["host-b"].power_off()
        await story.clock.sleep(1.0)
        report = await audited(story)
        assert kinds(report) == []
        assert list(report.unreached) == ["host-b"]
        await story.end()

    run_virtually(main)
