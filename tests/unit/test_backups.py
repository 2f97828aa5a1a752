"""Backups over days of virtual time: one for each due time, whatever fails and whoever leads."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from tests.support.duties import DAY_S, HOUR_S, DutyLab, seldom_bookmarks, virtually

from leeward import keys
from leeward.agent.types import DiskFormat
from leeward.errors import LeewardError, OperationRunning, WrongState
from leeward_controller.domain.backup import BACKUP_PRINCIPAL
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import (
    Operation,
    OperationError,
    OperationPhase,
    OperationType,
    RebuildArguments,
    SnapshotArguments,
)
from leeward_controller.housekeeping.backups import Backups
from leeward_controller.housekeeping.duty import Duty
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester
from leeward_controller.records import IMAGES, Commit, Stored
from leeward_controller.services.backup_policies import BackupPolicyService, NewBackupPolicy, PolicySpec
from leeward_controller.services.instances import Target

__all__ = ["seldom_bookmarks"]

POLICY = "projects/p/backupPolicies/nightly"


class Lab(DutyLab):
    """Snapshots take a minute, or fail as `failures` says by instance; `refusals` are not even begun."""

    def __init__(self) -> None:
        super().__init__()
        self.policies = BackupPolicyService(records=self.records, clock=self.clock, ids=self.ids)
        self.failures: dict[str, list[str]] = {}
        self.refusals: dict[str, LeewardError] = {}
        self.begun: list[Operation] = []
        self.takes_s = 60.0
        self.most_at_once = 0
        self._under_way = 0
        self._operations: dict[str, Operation] = {}

    def duties(self, surroundings: Surroundings, leader_epoch: int) -> Sequence[Duty]:
        submitter: Any = self
        return [Backups(surroundings=surroundings, submitter=submitter, leader_epoch=leader_epoch)]

    async def submit(
        self,
        instance: Stored[Instance],
        wanted: OperationType,
        arguments: SnapshotArguments,
        requester: Requester,
        *,
        leader_epoch: int,
    ) -> Operation:
        """As `Submitter.submit`: the same request is the same operation."""
        assert (wanted, requester.admin, requester.principal) == (OperationType.SNAPSHOT, True, BACKUP_PRINCIPAL)
        if requester.request_id in self._operations:
            return self._operations[requester.request_id]
        if instance.value.name in self.refusals:
            raise self.refusals[instance.value.name]
        now = self.clock.now()
        operation = Operation(
            id=self.ids.new(),
            type=wanted,
            instance=instance.value.name,
            instance_uid=instance.value.uid,
            arguments=arguments,
            phase=OperationPhase.RUNNING,
            step="copy",
            requested_by=requester.principal,
            create_time=now,
            update_time=now,
            request_id=requester.request_id,
        )
        self._operations[requester.request_id] = operation
        self.begun.append(operation)
        key = keys.operation(operation.id)
        revision = await self.records.commit(Commit().create(key, operation).alive(keys.LEADER, leader_epoch))
        self.spawn(self._drive(Stored(key, operation, revision, revision)))
        return operation

    async def _drive(self, stored: Stored[Operation]) -> None:
        operation = stored.value
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        await self.clock.sleep(self.takes_s)
        self._under_way -= 1
        ended = replace(operation, phase=OperationPhase.SUCCEEDED, end_time=self.clock.now())
        commit = Commit()
        if self.failures.get(operation.instance):
            error = OperationError(13, "STORAGE", self.failures[operation.instance].pop(0))
            ended = replace(ended, phase=OperationPhase.FAILED, error=error)
        else:
            assert isinstance(operation.arguments, SnapshotArguments)
            image = self.image(operation.arguments.image, operation.arguments.properties, operation.requested_by)
            commit.create(keys.image(image.name), image)
        self._operations[operation.request_id] = ended
        await self.records.commit(commit.replace(stored, ended))

    def image(self, name: str, properties: dict[str, str], by: str) -> Image:
        """An image's record."""
        return Image(
            name, self.ids.new(), "ab" * 32, DiskFormat.QCOW2, 1, 1, ("shared",), self.clock.now(), by, "", properties
        )

    async def policy(self, *instances: str, schedule: str = "0 2 * * *", keep: int = 3, zone: str = "") -> None:
        """The policy `nightly`."""
        names = tuple(f"projects/p/instances/{name}" for name in instances)
        spec = PolicySpec(schedule=schedule, time_zone=zone, keep_count=keep, instances=names)
        await self.policies.create(NewBackupPolicy("projects/p", "nightly", spec))

    async def images(self) -> list[str]:
        """The images there are, by the last part of their names."""
        return [stored.value.name.rpartition("/")[2] for stored in (await self.records.list(IMAGES)).items]

    def times(self) -> list[str]:
        """When snapshots were begun, as day and time."""
        return [f"{operation.create_time:%dT%H:%M}" for operation in self.begun]


def test_a_week_of_nightly_backups_leaves_the_newest() -> None:
    async def story(lab: Lab) -> None:
        await lab.instance("web-1")
        await lab.instance("db-1")
        await lab.policy("web-1", "db-1", keep=3)
        properties = {"backup_policy": POLICY, "backup_instance": "projects/p/instances/web-1"}
        mine = lab.image("projects/p/images/copy-of-mine", properties, "client:alice")
        await lab.records.commit(Commit().create(keys.image(mine.name), mine))
        await lab.lead()
        await lab.clock.sleep(3 * DAY_S)
        # What is no longer called a backup is kept, and so is one that an instance is about to be made of.
        kept = await lab.records.get(IMAGES, keys.image("projects/p/images/web-1-nightly-20300102t020000"))
        assert kept is not None
        await lab.records.commit(Commit().replace(kept, replace(kept.value, properties={})))
        rebuilding = replace(
            lab.begun[0],
            id=lab.ids.new(),
            type=OperationType.REBUILD,
            arguments=RebuildArguments("projects/p/images/db-1-nightly-20300101t020000", "ab" * 32, DiskFormat.QCOW2),
        )
        await lab.records.commit(Commit().create(keys.operation(rebuilding.id), rebuilding))
        await lab.clock.sleep(4 * DAY_S)
        assert lab.times() == [f"{day:02}T02:00" for day in range(1, 8) for _ in range(2)]
        assert await lab.images() == [
            "copy-of-mine",
            "db-1-nightly-20300101t020000",
            *(f"db-1-nightly-203001{day:02}t020000" for day in (5, 6, 7)),
            "web-1-nightly-20300102t020000",
            *(f"web-1-nightly-203001{day:02}t020000" for day in (5, 6, 7)),
        ]
        shown = await lab.policies.get(POLICY)
        assert shown.run is not None
        assert shown.run.start_time - datetime(2030, 1, 7, 2, tzinfo=UTC) < timedelta(seconds=1)
        assert shown.next_run_time == datetime(2030, 1, 8, 2, tzinfo=UTC)

    virtually(Lab, story)


def test_a_missed_time_is_made_up_once_and_new_leaders_make_nothing_twice() -> None:
    async def story(lab: Lab) -> None:
        await lab.instance("web-1")
        await lab.policy("web-1")
        await lab.lead()
        await lab.clock.sleep(2 * HOUR_S + 30.0)
        assert lab.times() == ["01T02:00"]
        await lab.lead()  # In the middle of the snapshot.
        await lab.clock.sleep(HOUR_S)
        await lab.resign()
        await lab.clock.sleep(3 * DAY_S)
        for _ in range(3):
            await lab.lead()
            await lab.clock.sleep(20.0)
        await lab.clock.sleep(HOUR_S)
        assert lab.times() == ["01T02:00", "04T03:00"]
        assert await lab.images() == ["web-1-nightly-20300101t020000", "web-1-nightly-20300104t020000"]

    virtually(Lab, story)


def test_failures_are_tried_again_after_growing_pauses_and_then_at_the_next_due_time() -> None:
    async def story(lab: Lab) -> None:
        for name in ("web-1", "db-1"):
            await lab.instance(name)
        await lab.policy("web-1", "db-1")
        web, db = "projects/p/instances/web-1", "projects/p/instances/db-1"
        lab.failures = {web: ["the pool is full"] * 5, db: ["flaky"]}
        await lab.lead()
        await lab.clock.sleep(2 * HOUR_S + 300.0)
        await lab.lead()  # Who knows of the attempts so far from the record.
        await lab.clock.sleep(4 * HOUR_S)
        of_web = [each for each in lab.begun if each.instance == web]
        gaps = [round((b.create_time - a.create_time).total_seconds() / 60) for a, b in pairwise(of_web)]
        assert gaps == [2, 6, 16, 31]  # A minute of work, then the pause.
        assert await lab.images() == ["db-1-nightly-20300101t020000"]
        run = (await lab.policies.get(POLICY)).run
        assert run is not None
        assert [(each.instance, each.reason) for each in run.failed] == [(web, "the pool is full")]
        await lab.clock.sleep(DAY_S)
        assert "web-1-nightly-20300102t020000" in await lab.images()
        run = (await lab.policies.get(POLICY)).run
        assert run is not None
        assert run.failed == ()

    virtually(Lab, story)


def test_rotation_waits_for_a_newer_backup_that_succeeded() -> None:
    async def story(lab: Lab) -> None:
        await lab.instance("web-1")
        await lab.policy("web-1", keep=1)
        await lab.lead()
        await lab.clock.sleep(HOUR_S * 3)
        lab.failures = {"projects/p/instances/web-1": ["no"] * 5}
        await lab.clock.sleep(DAY_S)
        assert await lab.images() == ["web-1-nightly-20300101t020000"]
        await lab.clock.sleep(DAY_S)
        assert await lab.images() == ["web-1-nightly-20300103t020000"]

    virtually(Lab, story)


def test_a_busy_instance_is_waited_for_and_one_in_a_wrong_state_given_up() -> None:
    async def story(lab: Lab) -> None:
        for name in ("busy", "wrong"):
            await lab.instance(name)
        await lab.policy("busy", "wrong")
        lab.refusals = {
            "projects/p/instances/busy": OperationRunning("a migration runs"),
            "projects/p/instances/wrong": WrongState("it is RESCUED"),
        }
        await lab.lead()
        await lab.clock.sleep(5 * HOUR_S)
        run = (await lab.policies.get(POLICY)).run
        assert run is not None
        assert [each.instance for each in run.failed] == ["projects/p/instances/wrong"]
        assert [each.instance for each in run.pending] == ["projects/p/instances/busy"]
        lab.refusals.clear()
        await lab.clock.sleep(300.0)
        assert await lab.images() == ["busy-nightly-20300101t020000"]

    virtually(Lab, story)


def test_a_node_copies_two_at_a_time() -> None:
    async def story(lab: Lab) -> None:
        names = [f"web-{number}" for number in range(5)]
        for name in names:
            await lab.instance(name)
        await lab.policy(*names)
        await lab.lead()
        await lab.clock.sleep(2 * HOUR_S + 240.0)
        assert lab.most_at_once == 2
        assert await lab.images() == [f"{name}-nightly-20300101t020000" for name in names]

    virtually(Lab, story)


def test_a_policy_that_rests_or_changes_makes_nothing_up() -> None:
    async def story(lab: Lab) -> None:
        await lab.instance("web-1")
        await lab.policy("web-1")
        await lab.lead()
        await lab.policies.update(Target(POLICY), PolicySpec(paused=True), ("paused",))
        await lab.clock.sleep(3 * DAY_S)
        assert (await lab.policies.get(POLICY)).next_run_time is None
        await lab.policies.update(Target(POLICY), PolicySpec(paused=False), ("paused",))
        await lab.policies.update(Target(POLICY), PolicySpec(schedule="0 3 * * *"), ("schedule",))
        await lab.clock.sleep(HOUR_S)
        assert lab.times() == []
        await lab.clock.sleep(3 * HOUR_S)
        assert lab.times() == ["04T03:00"]
        await lab.policies.delete(Target(POLICY))
        await lab.clock.sleep(2 * DAY_S)
        assert lab.times() == ["04T03:00"]
        assert [key.key for key in (await lab.store.list(keys.BACKUP_RUNS)).items] == []

    virtually(Lab, story)


def test_an_image_that_has_the_name_already_is_stepped_around() -> None:
    async def story(lab: Lab) -> None:
        await lab.instance("web-1")
        await lab.policy("web-1")
        theirs = lab.image("projects/p/images/web-1-nightly-20300101t020000", {}, "client:alice")
        await lab.records.commit(Commit().create(keys.image(theirs.name), theirs))
        await lab.lead()
        await lab.clock.sleep(3 * HOUR_S)
        (made,) = [name for name in await lab.images() if name != "web-1-nightly-20300101t020000"]
        assert made.startswith("web-1-nightly-")
        assert made.endswith("-20300101t020000")

    virtually(Lab, story)
