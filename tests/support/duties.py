"""The leader's duties on virtual time, over a store in memory and without hosts: days take seconds."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from leeward import keys
from leeward.agent.types import DiskFormat
from leeward.clock import SeededIds
from leeward.store.memory import MemoryStore
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.cluster import Controller
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.housekeeping.duty import Duty
from leeward_controller.housekeeping.loop import Housekeeping
from leeward_controller.operations.context import Surroundings
from leeward_controller.records import Commit, Records
from leeward_controller.view import ClusterView
from leeward_lab.virtual_time import VirtualClock, run_virtually

HOUR_S, DAY_S = 3600.0, 86400.0


@pytest.fixture(autouse=True)
def seldom_bookmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days are long for a watch that says every two seconds that nothing happened."""
    monkeypatch.setattr("leeward.store.memory.store._BOOKMARK_EVERY_S", 3600.0)


class DutyLab:
    """A store, a view of it, and a leader with the duties that `duties` makes."""

    def __init__(self) -> None:
        self.clock, self.ids = VirtualClock(), SeededIds(1)
        self.store = MemoryStore(self.clock)
        codec = StateCodec()
        self.view = ClusterView(store=self.store, codec=codec, clock=self.clock)
        self.records = Records(store=self.store, codec=codec, ids=self.ids, clock=self.clock, picture=self.view)
        self._work: set[asyncio.Task[None]] = set()
        self._leader: asyncio.Task[None] | None = None

    def duties(self, surroundings: Surroundings, leader_epoch: int) -> Sequence[Duty]:
        """What a leader sees to."""
        raise AssertionError("a lab without duties")

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside; it ends with the lab at the latest."""
        self._work.add(asyncio.ensure_future(work))

    async def instance(self, name: str, *, node: str = "a", **fields: Any) -> Instance:
        """An instance there is, with these fields."""
        now = self.clock.now()
        usual: dict[str, Any] = {
            "name": f"projects/p/instances/{name}",
            "uid": self.ids.new(),
            "state": InstanceState.ACTIVE,
            "flavor": "small",
            "resources": Resources(1, 1024, 1),
            "image": "projects/p/images/tiny",
            "image_digest": "ab" * 32,
            "image_format": DiskFormat.RAW,
            "pool_id": "shared",
            "nics": (),
            "create_time": now,
            "update_time": now,
            "created_by": "client:alice",
            "node": node,
        }
        record = Instance(**(usual | fields))
        await self.records.commit(Commit().create(keys.instance(record.name), record))
        return record

    async def lead(self) -> None:
        """A new leader, who knows nothing by heart."""
        await self.resign()
        await self.records.commit(Commit().discard(keys.LEADER))
        leader = Controller("c", "c:1", "1", self.clock.now())
        epoch = await self.records.commit(Commit().create(keys.LEADER, leader))
        nobody: Any = None
        surroundings = Surroundings(
            records=self.records,
            view=self.view,
            agents=nobody,
            clock=self.clock,
            rng=random.Random(1),
            policy=nobody,
            fence=nobody,
        )
        housekeeping = Housekeeping(surroundings=surroundings, duties=self.duties(surroundings, epoch))
        self._leader = asyncio.ensure_future(housekeeping.run())

    async def resign(self) -> None:
        """Nobody leads."""
        if self._leader is not None:
            assert not self._leader.done(), self._leader
            self._leader.cancel()
            await asyncio.gather(self._leader, return_exceptions=True)
            self._leader = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the view is fed; fails when a part ended by itself."""
        viewing = asyncio.ensure_future(self.view.run())
        try:
            yield
            for task in (self._leader, viewing):
                assert task is None or not task.done(), task
        finally:
            tasks = [task for task in (self._leader, viewing, *self._work) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.store.close()


LabT = TypeVar("LabT", bound=DutyLab)


def virtually(make: Callable[[], LabT], story: Callable[[LabT], Coroutine[Any, Any, None]]) -> None:
    """Run a story in a lab of its own."""

    async def main() -> None:
        lab = make()
        async with lab.running():
            await story(lab)

    run_virtually(main)
