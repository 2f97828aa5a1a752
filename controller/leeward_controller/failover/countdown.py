"""How long a disarm lasts yet, counted so that a clock that jumps can neither prolong nor cut it much.

A disarm's end is written as a time of day. A leader reads its own time of day once, when it first sees that disarm, and
never takes more from it than the duration that was asked for; from then on it counts on its monotonic clock. So a jump
while it leads changes nothing. One whose time of day was wrong at first arms at once (it is ahead), or after the whole
duration counted anew (it is behind): it errs to the side of arming. That cannot run a guest twice, since no proof is
judged by the time of day, while guests that are never restarted because a clock stood still would be lost.
"""

from leeward.clock import Clock
from leeward_controller.domain.cluster import Disarm
from leeward_controller.records import Stored


class Countdown:
    """Counts down the disarm that is in force, during one term of leadership."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._revision = 0
        self._ends_s = 0.0

    def left_s(self, stored: Stored[Disarm] | None) -> float:
        """Seconds until it expires, 0 or less when it has; 0 without one."""
        if stored is None:
            return 0.0
        if stored.revision != self._revision:
            self._revision = stored.revision
            self._ends_s = self._clock.monotonic_s() + self._at_first_sight_s(stored.value)
        return self._ends_s - self._clock.monotonic_s()

    def _at_first_sight_s(self, disarm: Disarm) -> float:
        asked_s = (disarm.expire_time - disarm.time).total_seconds()
        left_s = (disarm.expire_time - self._clock.now()).total_seconds()
        return min(max(left_s, 0.0), asked_s)
