"""The leader's broom: operations that ended long ago are forgotten, in small transactions."""

from datetime import timedelta

import structlog

from leeward import keys
from leeward.errors import LeewardError
from leeward_controller.operations.context import Surroundings
from leeward_controller.records import Commit

log = structlog.get_logger()

KEEP_OPERATIONS = timedelta(hours=24)
_ROUND_S = 60.0
_PER_TRANSACTION = 32


class Housekeeping:
    """Forgets what nobody needs, during one term of leadership."""

    def __init__(self, *, surroundings: Surroundings, leader_epoch: int) -> None:
        self._surroundings = surroundings
        self._leader_epoch = leader_epoch

    async def run(self) -> None:
        """Sweep once a minute until cancelled."""
        while True:
            try:
                await self._sweep()
            except LeewardError as error:
                log.info("housekeeping.put_off", why=error.message)
            await self._surroundings.clock.sleep(_ROUND_S)

    async def _sweep(self) -> None:
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
