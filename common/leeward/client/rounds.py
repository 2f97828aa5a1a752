"""How long to go on when calls fail: round the endpoints, with pauses, until patience ends."""

from leeward.clock import Clock
from leeward.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    LeewardError,
    StoreIndefinite,
    StoreUnavailable,
    Unavailable,
)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0


class Unreachable(Unavailable):
    """No connection to an endpoint came about, so the call was never sent."""


class Rounds:
    """The failures of one call, or of one stream since its last message."""

    def __init__(self, endpoints: int, *, patience_s: float, clock: Clock) -> None:
        self._endpoints = endpoints
        self._patience_s = patience_s
        self._clock = clock
        self._give_up_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._failures: dict[str, LeewardError] = {}
        self.reset()

    def reset(self) -> None:
        """Something was answered: patience begins anew."""
        self._give_up_s = self._clock.monotonic_s() + self._patience_s
        self._pause_s = _FIRST_PAUSE_S
        self._failures = {}

    async def failed(self, address: str, error: LeewardError, *, until_s: float | None = None) -> None:
        """Note a failure and return when the next endpoint may be tried, pausing once all have failed.

        Raises when it is no use to go on, or `until_s` (on the monotonic clock) would pass in the pause.
        """
        self._failures[address] = error
        if len(self._failures) < self._endpoints:
            return
        if not any(map(_may_pass, self._failures.values())):
            raise self._summary(error)
        # How often connections are tried is for the channels to say, so that asking them again costs nobody anything.
        pause_s = _FIRST_PAUSE_S if self._never_sent() else self._pause_s
        wake_s = self._clock.monotonic_s() + pause_s
        if wake_s > self._give_up_s or (until_s is not None and wake_s >= until_s):
            raise self._summary(error)
        await self._clock.sleep(pause_s)
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def said_rather_than(self, last: LeewardError) -> LeewardError | None:
        """What an endpoint said earlier, when the last attempt only ran out of time: it says more about why."""
        said = [error for error in self._failures.values() if not isinstance(error, DeadlineExceeded)]
        return said[-1] if said and isinstance(last, DeadlineExceeded) else None

    def _never_sent(self) -> bool:
        return all(isinstance(error, Unreachable) for error in self._failures.values())

    def _summary(self, last: LeewardError) -> LeewardError:
        """What to tell of all failures together: the server's own words when there is only one story."""
        endpoints = ", ".join(self._failures)
        if not all(map(is_connection_trouble, self._failures.values())) or len(self._failures) == 1:
            last.metadata.setdefault("endpoints", endpoints)
            return last
        stories = "; ".join(error.message for error in self._failures.values())
        reasons = {error.specific_reason for error in self._failures.values()}
        return Unavailable(
            f"none of {len(self._failures)} endpoints took the call: {stories}",
            reason=reasons.pop() if len(reasons) == 1 else None,
            metadata={"endpoints": endpoints},
            retry_after_s=max((error.retry_after_s or 0.0 for error in self._failures.values()), default=0.0) or None,
        )


def is_connection_trouble(error: LeewardError) -> bool:
    """Whether it says that this endpoint is no use now, and nothing about the call itself."""
    kinds = (Unreachable, Draining, StoreUnavailable, StoreIndefinite, DeadlineExceeded, Cancelled)
    return isinstance(error, kinds) or error.specific_reason == "CONNECTION_LOST"


def was_not_done(error: LeewardError) -> bool:
    """Whether the call certainly changed nothing."""
    return isinstance(error, Unreachable) or (isinstance(error, Unavailable) and error.retriable)


def _may_pass(error: LeewardError) -> bool:
    return is_connection_trouble(error) and error.specific_reason != "TLS_REFUSED"
