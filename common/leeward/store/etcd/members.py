"""All members of the cluster: which one is used, and when another one is tried.

One member is preferred until it fails. Calls that may be repeated are raced: the next member is asked while the first
still owes its answer. Transactions are sent to one member at a time, and to another one only when it is certain that
the first has not done them.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from leeward.clock import Clock
from leeward.errors import InvalidArgument, StoreUnavailable, Unavailable
from leeward.store.etcd.member import Member
from leeward.store.etcd.tls import EtcdTls

T = TypeVar("T")

# Called with a member and the seconds it may take.
Attempt = Callable[[Member, float], Coroutine[Any, Any, T]]

# Shorter than what clients of the public API grant one attempt, so that they are told why there is no answer.
REPEATABLE_DEADLINE_S = 4.0
# An attempt is given up before the whole call is, since etcd may hold a read for 7 s after it lost its leader.
REPEATABLE_ATTEMPT_S = 1.5
HEDGE_AFTER_S = 0.4
CONNECT_S = 1.0
FIND_MEMBER_S = 4.0
# A proposal that its leader did not commit within an election or two is lost, so waiting longer helps nobody.
WRITE_S = 2.0
_PAUSE_S = 0.1


class Members:
    """The members, with one of them preferred."""

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None, clock: Clock) -> None:
        if not endpoints:
            raise InvalidArgument.field("endpoints", "at least one etcd endpoint is needed")
        if len(set(endpoints)) != len(endpoints):
            raise InvalidArgument.field("endpoints", f"an endpoint is named twice: {', '.join(endpoints)}")
        self._members = [Member(endpoint, tls) for endpoint in endpoints]
        self._clock = clock
        self._closed = False

    def in_order(self) -> tuple[Member, ...]:
        """The preferred member first."""
        return tuple(self._members)

    def prefer(self, member: Member) -> None:
        """It answered when another one did not."""
        if self._members[0] is not member:
            self._members.remove(member)
            self._members.insert(0, member)

    def failed(self, member: Member) -> None:
        """It did not answer: try it last."""
        self._members.remove(member)
        self._members.append(member)

    async def race(
        self,
        attempt: Attempt[T],
        *,
        deadline_s: float = REPEATABLE_DEADLINE_S,
        attempt_s: float = REPEATABLE_ATTEMPT_S,
        hedge_after_s: float = HEDGE_AFTER_S,
    ) -> T:
        """The first answer of any member. Only for calls that may be done twice.

        Raises StoreUnavailable when none answered within `deadline_s`, and at once what a member refused it with.
        """
        race = _Race(attempt, clock=self._clock, attempt_s=attempt_s, hedge_after_s=hedge_after_s)
        give_up_at = self._clock.monotonic_s() + deadline_s
        try:
            while (left_s := give_up_at - (now := self._clock.monotonic_s())) > 0:
                self._check_open()
                race.ask(self._members, now=now, left_s=left_s)
                for task in await race.next_finished(now=now, left_s=left_s):
                    member = race.running.pop(task)
                    try:
                        answer = task.result()
                    except Unavailable as error:
                        race.rest(member, error, until=self._clock.monotonic_s() + _PAUSE_S)
                        self.failed(member)
                    else:
                        for slower in race.running.values():
                            self.failed(slower)
                        self.prefer(member)
                        return answer
        finally:
            await race.abandon()
        raise StoreUnavailable(f"no etcd member answered in {deadline_s:.1f} s: {_story(race.failures)}")

    async def send(self, attempt: Attempt[T]) -> T:
        """Have one member do it at most once.

        Raises StoreIndefinite when it may have been done, StoreUnavailable when no member could be given it.
        """
        give_up_at = self._clock.monotonic_s() + FIND_MEMBER_S
        failures: list[str] = []
        while self._clock.monotonic_s() < give_up_at:
            self._check_open()
            for member in self.in_order():
                try:
                    await member.connect(timeout_s=CONNECT_S)
                    return await attempt(member, WRITE_S)
                except StoreUnavailable as error:
                    failures.append(error.message)
                    self.failed(member)
                except Unavailable:
                    self.failed(member)
                    raise
            await self._clock.sleep(_PAUSE_S)
        raise StoreUnavailable(f"no etcd member took the write in {FIND_MEMBER_S:.1f} s: {_story(failures)}")

    async def close(self) -> None:
        """Close every channel. Calls under way end with an error."""
        self._closed = True
        for member in self._members:
            await member.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


class _Race(Generic[T]):
    """One call, being tried on some of the members at once."""

    def __init__(self, attempt: Attempt[T], *, clock: Clock, attempt_s: float, hedge_after_s: float) -> None:
        self.running: dict[asyncio.Task[T], Member] = {}
        self.failures: list[str] = []
        self._attempt = attempt
        self._clock = clock
        self._attempt_s = attempt_s
        self._hedge_after_s = hedge_after_s
        self._ask_next_at = float("-inf")
        self._resting: dict[Member, float] = {}

    def ask(self, members: Sequence[Member], *, now: float, left_s: float) -> None:
        """Start one more attempt if it is time and there is a member that is neither being asked nor just failed."""
        if now < self._ask_next_at:
            return
        asked = set(self.running.values())
        for member in members:
            if member not in asked and self._resting.get(member, now) <= now:
                task = asyncio.create_task(self._attempt(member, min(self._attempt_s, left_s)))
                self.running[task] = member
                self._ask_next_at = now + self._hedge_after_s
                return

    async def next_finished(self, *, now: float, left_s: float) -> list[asyncio.Task[T]]:
        """Attempts that have ended; empty when it is time to ask somebody else."""
        timeout_s = min(left_s, self._ask_next_at - now if self._ask_next_at > now else _PAUSE_S)
        if not self.running:
            await self._clock.sleep(timeout_s)
            return []
        done, _ = await asyncio.wait(self.running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        # In the order in which they were asked, not in a set's.
        return [task for task in self.running if task in done]

    def rest(self, member: Member, error: Unavailable, *, until: float) -> None:
        """It failed: ask another one at once, and this one again after a pause."""
        self.failures.append(error.message)
        self._resting[member] = until
        self._ask_next_at = float("-inf")

    async def abandon(self) -> None:
        """Cancel what is still being asked."""
        for task in self.running:
            task.cancel()
        if self.running:
            await asyncio.gather(*self.running, return_exceptions=True)


def _story(failures: list[str]) -> str:
    # The latest of each kind are enough; a long outage repeats itself.
    return "; ".join(dict.fromkeys(failures[-6:])) or "no answer"
