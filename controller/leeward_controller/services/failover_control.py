"""The operators' hold on failover: how it stands, disarming it for a while, and releasing its brake."""

from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from leeward import keys
from leeward.clock import Clock
from leeward.errors import Conflict, FailedPrecondition, Violation
from leeward_controller.domain.cluster import Brake, BrakeRelease, Controller, Disarm
from leeward_controller.records import BRAKE, DISARM, Commit, Kind, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.node_operations import MAX_REASON_LENGTH

log = structlog.get_logger()

LEAST_DISARM_S = 60.0
MOST_DISARM_S = 24 * 3600.0
_ATTEMPTS = 5
_LEADER = Kind(Controller, keys.LEADER)
_SUBJECT = "failover"


@dataclass(frozen=True, slots=True)
class FailoverState:
    """How failover stands: what disarms it, the brake while its cause is there, and who leads; None for what is not."""

    disarm: Disarm | None
    brake: Stored[Brake] | None
    leader: Controller | None


class FailoverControl:
    """What operators decide of failover as a whole. The leader acts on it at its next look, within a second."""

    def __init__(self, *, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock

    async def state(self) -> FailoverState:
        """How it stands now. Raises StoreUnavailable."""
        disarm = await self._records.get(DISARM, keys.DISARM)
        brake = await self._records.get(BRAKE, keys.BRAKE)
        leader = await self._records.get(_LEADER, keys.LEADER)
        return FailoverState(disarm.value if disarm else None, brake, leader.value if leader else None)

    async def disarm(
        self, *, reason: str, duration_s: float | None, principal: str, validate_only: bool = False
    ) -> FailoverState:
        """Have nodes neither fenced nor evacuated by themselves for this long; takes the place of an earlier disarm.

        Raises InvalidArgument, StoreUnavailable, StoreIndefinite.
        """
        checks = Checks()
        _check_reason(checks, reason)
        if checks.that(duration_s is not None, "duration", "is missing; say for how long"):
            checks.between(duration_s or 0.0, LEAST_DISARM_S, MOST_DISARM_S, "duration", " s")
        checks.done()
        now = self._clock.now()
        disarm = Disarm(reason.strip(), principal, now, now + timedelta(seconds=duration_s or 0.0))
        if validate_only:
            return replace(await self.state(), disarm=disarm)
        await self._records.commit(Commit().put(keys.DISARM, disarm))
        log.warning("failover.disarmed", by=principal, reason=disarm.reason, until=str(disarm.expire_time))
        return await self.state()

    async def arm(self, *, principal: str, validate_only: bool = False) -> FailoverState:
        """End a disarm; no change where there is none. Raises StoreUnavailable, StoreIndefinite, Conflict."""
        if validate_only:
            return replace(await self.state(), disarm=None)
        for attempt in range(_ATTEMPTS):
            stored = await self._records.get(DISARM, keys.DISARM)
            if stored is None:
                break
            try:
                await self._records.commit(Commit().remove(stored))
                log.warning("failover.armed", by=principal, reason=stored.value.reason)
                break
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
        return await self.state()

    async def release_brake(
        self, *, reason: str, principal: str, etag: str = "", validate_only: bool = False
    ) -> FailoverState:
        """Let evacuation go on although the brake's cause persists, for the nodes that are counted now.

        Said again by the same person for the same reason, it stands. Raises InvalidArgument, FailedPrecondition (it is
        not pulled, or holds because the controllers were unwell), Conflict (etag).
        """
        checks = Checks()
        _check_reason(checks, reason)
        checks.done()
        release = BrakeRelease(reason.strip(), principal, self._clock.now())
        for attempt in range(1 if etag else _ATTEMPTS):
            stored = await self._records.get(BRAKE, keys.BRAKE)
            if stored is None:
                raise _not_pulled("nothing holds evacuation")
            if _is_repeated(stored.value, release):
                break
            check_etag(stored, etag, name=_SUBJECT)
            _check_releasable(stored.value)
            if validate_only:
                break
            try:
                await self._records.commit(Commit().replace(stored, replace(stored.value, release=release)))
                log.warning("failover.brake_released", by=principal, reason=reason, nodes=stored.value.nodes)
                break
            except Conflict:
                if attempt == _ATTEMPTS - 1 or etag:
                    raise
        return await self.state()


def _check_reason(checks: Checks, reason: str) -> None:
    checks.that(bool(reason.strip()), "reason", "is missing; whoever comes next will want to know")
    too_long = f"has {len(reason)} characters, at most {MAX_REASON_LENGTH} are allowed"
    checks.that(len(reason) <= MAX_REASON_LENGTH, "reason", too_long)


def _is_repeated(brake: Brake, release: BrakeRelease) -> bool:
    there = brake.release
    if there is None or brake.unwell:
        return False
    return (there.released_by, there.reason) == (release.released_by, release.reason)


def _check_releasable(brake: Brake) -> None:
    if brake.unwell:
        raise FailedPrecondition(
            f"the brake holds because the controllers' own sight was not to be trusted: {brake.reason}. It is released "
            "by itself once they have been well for as long as a heartbeat lasts; see to etcd, or evacuate a fenced "
            "node by hand",
            reason="CONTROLLERS_UNWELL",
            violations=[Violation("BRAKE", _SUBJECT, brake.reason)],
            resource=_SUBJECT,
        )
    if brake.release is not None:
        word = brake.release
        raise _not_pulled(f"{word.released_by} released it at {word.time:%Y-%m-%d %H:%M:%SZ} ({word.reason})")


def _not_pulled(why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the brake is not pulled: {why}",
        reason="BRAKE_NOT_PULLED",
        violations=[Violation("BRAKE", _SUBJECT, why)],
        resource=_SUBJECT,
    )
