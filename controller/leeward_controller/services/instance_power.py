"""What is done to an instance where it is: power, processors, memory, and its end."""

from leeward.agent.types import RebootMode
from leeward_controller.domain.operation import (
    DeleteArguments,
    OperationType,
    PlainArguments,
    RebootArguments,
    StartArguments,
    StopArguments,
)
from leeward_controller.operations.submit import Requester
from leeward_controller.services.beginning import LONGEST_GRACE_S, Beginning, bounded
from leeward_controller.services.checks import Checks
from leeward_controller.services.instances import Target
from leeward_controller.services.shown import ShownOperation


class InstancePower:
    """Start, stop and all their relatives. `deleted_retention_s` is how long what is deleted can be brought back."""

    def __init__(self, *, beginning: Beginning, deleted_retention_s: float) -> None:
        self._begin = beginning.begin
        self._deleted_retention_s = deleted_retention_s

    async def start(self, target: Target, requester: Requester) -> ShownOperation:
        """Boot a stopped instance. Raises what `Beginning.begin` does."""
        return await self._begin(target, OperationType.START, StartArguments(), requester)

    async def stop(self, target: Target, requester: Requester, *, grace_period_s: float | None) -> ShownOperation:
        """Shut an instance down. Raises what `Beginning.begin` does."""
        checks, usual_s = Checks(), StopArguments().grace_period_s
        grace_s = bounded(checks, grace_period_s, usual_s, longest_s=LONGEST_GRACE_S, field="grace_period")
        return await self._begin(target, OperationType.STOP, StopArguments(grace_s), requester, checks)

    async def reboot(
        self, target: Target, requester: Requester, *, mode: RebootMode, timeout_s: float | None
    ) -> ShownOperation:
        """Restart an instance where it is. Raises what `Beginning.begin` does."""
        checks, usual_s = Checks(), RebootArguments().timeout_s
        bound_s = bounded(checks, timeout_s, usual_s, longest_s=LONGEST_GRACE_S, field="timeout")
        return await self._begin(target, OperationType.REBOOT, RebootArguments(mode, bound_s), requester, checks)

    async def delete(self, target: Target, requester: Requester, *, purge: bool = False) -> ShownOperation:
        """Delete an instance, interrupting what runs on it. Raises what `Beginning.begin` does.

        It can be brought back for as long as the settings say, unless `purge`, or it was deleted before, or never ran.
        """
        arguments = DeleteArguments(0.0 if purge else self._deleted_retention_s)
        return await self._begin(target, OperationType.DELETE, arguments, requester)

    async def plain(self, target: Target, wanted: OperationType, requester: Requester) -> ShownOperation:
        """Begin an operation that needs no more than the instance. Raises what `Beginning.begin` does."""
        return await self._begin(target, wanted, PlainArguments(), requester)
