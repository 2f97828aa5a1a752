"""Operations that ended long ago are forgotten, in small transactions; an instance's history stays."""

from datetime import timedelta

from leeward import keys
from leeward_controller.operations.context import Surroundings
from leeward_controller.records import Commit

KEEP_OPERATIONS = timedelta(hours=24)
_ROUND_S = 60.0
_PER_TRANSACTION = 32


class OldOperations:
    """Forgets operations once a request that began one is not repeated any more."""

    name = "old operations"

    def __init__(self, *, surroundings: Surroundings, leader_epoch: int) -> None:
        self._surroundings = surroundings
        self._leader_epoch = leader_epoch

    def concerns(self, key: str) -> bool:
        return False

    async def work(self) -> float:
        horizon = self._surroundings.clock.now() - KEEP_OPERATIONS
        old = [
            stored
            for stored in self._surroundings.view.operations.values()
            if stored.value.end_time is not None and stored.value.end_time < horizon
        ]
        for start in range(0, len(old), _PER_TRANSACTION):
            commit = Commit().alive(keys.LEADER, self._leader_epoch)
            for stored in old[start : start + _PER_TRANSACTION]:
                commit.remove(stored)
            await self._surroundings.records.commit(commit)
        return _ROUND_S
