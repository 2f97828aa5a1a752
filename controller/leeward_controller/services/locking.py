"""Locks: whoever may change an instance can keep others from it; admins are never kept out."""

from dataclasses import replace

from leeward import names
from leeward.clock import Clock
from leeward.errors import PermissionDenied
from leeward_controller.domain.instance import Instance, InstanceLock
from leeward_controller.domain.transitions import Immediate, check_lock, check_state
from leeward_controller.operations.submit import Requester
from leeward_controller.records import Stored
from leeward_controller.services.checks import Checks
from leeward_controller.services.instances import InstanceService, Target

MAX_REASON_LENGTH = 1024


class Locking:
    """Locks and unlocks instances, whatever is running on them."""

    def __init__(self, *, instances: InstanceService, clock: Clock) -> None:
        self._instances = instances
        self._clock = clock

    async def lock(self, target: Target, requester: Requester, *, reason: str) -> Stored[Instance]:
        """Refuse every change by others than admins. Locking it again in the same words changes nothing.

        Raises InvalidArgument, NotFound, Locked (by somebody else), WrongState, Conflict (etag).
        """
        checks = _checked(target, requester)
        too_long = f"has {len(reason)} characters, at most {MAX_REASON_LENGTH} are allowed"
        checks.that(len(reason) <= MAX_REASON_LENGTH, "reason", too_long)
        checks.done()

        def change(instance: Instance) -> Instance:
            check_state(instance, Immediate.LOCK)
            there = instance.lock
            if there is not None and (there.locker, there.reason) == (requester.principal, reason):
                return instance
            check_lock(instance, Immediate.LOCK, admin=requester.admin)
            return replace(instance, lock=InstanceLock(reason, requester.principal, self._clock.now()))

        return await self._instances.change(target, change)

    async def unlock(self, target: Target, requester: Requester) -> Stored[Instance]:
        """Allow changes again; no error when it is not locked.

        Raises InvalidArgument, NotFound, PermissionDenied (somebody else locked it, and the caller is no admin),
        WrongState, Conflict (etag).
        """
        _checked(target, requester).done()

        def change(instance: Instance) -> Instance:
            check_state(instance, Immediate.UNLOCK)
            lock = instance.lock
            if lock is not None and not requester.admin and lock.locker != requester.principal:
                raise PermissionDenied(
                    f"{instance.name} was locked by {lock.locker}: only that one and admins may unlock it",
                    reason="NOT_LOCKER",
                    metadata={"principal": requester.principal, "locker": lock.locker, "lock_reason": lock.reason},
                    resource=instance.name,
                )
            return replace(instance, lock=None)

        return await self._instances.change(target, change)


def _checked(target: Target, requester: Requester) -> Checks:
    checks = Checks()
    checks.parsed(lambda: names.project_instance(target.name), ("", ""))
    checks.request_id(requester.request_id)
    return checks
