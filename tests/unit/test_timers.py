"""What instances have a time for is begun within a second of it, and begun again when it fails."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

from tests.support.duties import HOUR_S, DutyLab, seldom_bookmarks, virtually

from leeward import keys
from leeward.agent.types import DiskFormat
from leeward_controller.domain.instance import Deletion, Instance, InstanceState, Resize, Resources, Shelf
from leeward_controller.domain.operation import Arguments, DeleteArguments, OperationType, PlainArguments
from leeward_controller.housekeeping.duty import Duty
from leeward_controller.housekeeping.timers import Timers
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester
from leeward_controller.records import INSTANCES, Commit, Stored

__all__ = ["seldom_bookmarks"]

S = InstanceState


class Lab(DutyLab):
    """Operations take five seconds. They fail by leaving the instance as it was, as often as `fails` says."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = 0
        self.begun: list[tuple[str, OperationType, Arguments, float]] = []

    def duties(self, surroundings: Surroundings, leader_epoch: int) -> Sequence[Duty]:
        submitter: Any = self
        return [Timers(surroundings=surroundings, submitter=submitter, leader_epoch=leader_epoch)]

    async def submit(
        self,
        instance: Stored[Instance],
        wanted: OperationType,
        arguments: Arguments,
        requester: Requester,
        *,
        leader_epoch: int,
    ) -> None:
        """As `Submitter.submit`."""
        assert (requester.principal, requester.admin) == ("leeward:timer", True)
        name = instance.value.name.rpartition("/")[2]
        busy = replace(instance.value, current_operation="operations/x")
        await self.records.commit(Commit().replace(instance, busy).alive(keys.LEADER, leader_epoch))
        self.begun.append((name, wanted, arguments, self.clock.monotonic_s()))
        self.spawn(self._end(name))

    async def _end(self, name: str) -> None:
        await self.clock.sleep(5.0)
        stored = await self.stored(name)
        self.fails -= 1
        state = stored.value.state if self.fails >= 0 else S.STOPPED
        await self.records.commit(Commit().replace(stored, replace(stored.value, state=state, current_operation="")))

    async def stored(self, name: str) -> Stored[Instance]:
        """An instance's record."""
        stored = await self.records.get(INSTANCES, keys.instance(f"projects/p/instances/{name}"))
        assert stored is not None
        return stored

    async def resized(self, name: str, *, seconds: float, **fields: Any) -> None:
        """An instance that confirms its resize in so many seconds."""
        time = self.clock.now() + timedelta(seconds=seconds)
        resize = Resize("small", Resources(1, 1, 1), "a", "shared", S.ACTIVE, time)
        await self.instance(name, state=S.RESIZED, resize=resize, **fields)


def test_each_is_begun_at_its_time() -> None:
    async def story(lab: Lab) -> None:
        now = lab.clock.now()
        await lab.resized("missed", seconds=-50.0)
        await lab.lead()
        await lab.resized("r", seconds=100.0)
        shelf = Shelf("projects/p/images/s", "ab" * 32, DiskFormat.RAW, now + timedelta(seconds=200))
        await lab.instance("s", state=S.SHELVED, shelf=shelf)
        deletion = Deletion(S.ACTIVE, now + timedelta(hours=3))
        await lab.instance("d", state=S.SOFT_DELETED, deletion=deletion)
        # These wait for nothing.
        await lab.instance("plain")
        await lab.instance("offloaded", state=S.SHELVED_OFFLOADED, shelf=replace(shelf, offload_time=None))
        await lab.instance("gone", state=S.SOFT_DELETED, deletion=deletion, node="")
        stored = await lab.stored("gone")
        await lab.records.commit(Commit().remove(stored))
        await lab.clock.sleep(4 * HOUR_S)
        due = {"missed": 0.0, "r": 100.0, "s": 200.0, "d": 3 * HOUR_S}
        assert [each[:3] for each in lab.begun] == [
            ("missed", OperationType.CONFIRM_RESIZE, PlainArguments()),
            ("r", OperationType.CONFIRM_RESIZE, PlainArguments()),
            ("s", OperationType.OFFLOAD, PlainArguments()),
            ("d", OperationType.DELETE, DeleteArguments(retention_s=0.0)),
        ]
        for name, _, _, at_s in lab.begun:
            assert 0.0 <= at_s - due[name] <= 1.0, (name, at_s)

    virtually(Lab, story)


def test_what_fails_is_begun_again_after_growing_pauses() -> None:
    async def story(lab: Lab) -> None:
        await lab.lead()
        lab.fails = 4
        await lab.resized("r", seconds=10.0)
        await lab.clock.sleep(HOUR_S)
        times_s = [each[3] for each in lab.begun]
        assert [round(after - before) for before, after in pairwise(times_s)] == [10, 20, 40, 80]
        assert (await lab.stored("r")).value.state is S.STOPPED

    virtually(Lab, story)


def test_what_is_under_way_comes_first() -> None:
    async def story(lab: Lab) -> None:
        await lab.lead()
        await lab.resized("r", seconds=10.0, current_operation="operations/reverting")
        await lab.clock.sleep(100.0)
        assert lab.begun == []
        stored = await lab.stored("r")
        await lab.records.commit(Commit().replace(stored, replace(stored.value, current_operation="")))
        await lab.clock.sleep(1.0)
        assert [each[0] for each in lab.begun] == ["r"]

    virtually(Lab, story)


def test_calm_is_not_busy() -> None:
    """Waiting for a time that is far away takes no looks at the clock in between, but for a few an hour."""

    async def story(lab: Lab) -> None:
        await lab.resized("r", seconds=2 * HOUR_S)
        looks = 0
        now = lab.clock.now

        def counted() -> Any:
            nonlocal looks
            looks += 1
            return now()

        await lab.lead()
        await lab.clock.sleep(1.0)
        lab.clock.now = counted  # type: ignore[method-assign]
        await lab.clock.sleep(HOUR_S)
        assert looks <= 70

    virtually(Lab, story)
