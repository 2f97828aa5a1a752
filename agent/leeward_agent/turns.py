"""One mutating call at a time on each guest, and none that another one has overtaken."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from leeward.agent.types import Caller
from leeward.errors import Cancelled, Draining, StaleClaim
from leeward_agent.ports import Claims

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Turn:
    """The right to act on a guest now, until a call by a newer revision shows up."""

    def __init__(self, uid: str, caller: Caller) -> None:
        self.uid = uid
        self.caller = caller
        self._superseded_by = 0
        self._given_up = False
        self._over = asyncio.Event()

    def supersede(self, revision: int) -> None:
        """Tell the holder that a call by a newer revision has come."""
        self._superseded_by = max(self._superseded_by, revision)
        if self._superseded_by > self.caller.revision:
            self._over.set()

    def give_up(self) -> None:
        """Tell the holder that nobody waits for its work any more."""
        self._given_up = True
        self._over.set()

    def check(self) -> None:
        """To be called between steps and while waiting.

        Raises StaleClaim once a newer revision has come, Cancelled once nobody waits any more.
        """
        if self._superseded_by > self.caller.revision:
            raise _stale(self.uid, self.caller, self._superseded_by)
        if self._given_up:
            raise Cancelled(f"{self.caller.operation} does not wait any more for what it asked of guest {self.uid}")

    async def unless_over(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What the work answers. It is cancelled, and waited for, when the turn is over before; raises as `check`."""
        working = asyncio.ensure_future(work)
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((working, over), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.check()
            return await working
        finally:
            over.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait((working,))
                self._tell_how_it_ended(working)

    def _tell_how_it_ended(self, working: asyncio.Future[Any]) -> None:
        """Why work that was cut off could not clear up behind it: its caller is told why it was cut off, not this."""
        error = None if working.cancelled() else working.exception()
        if error is not None:
            operation, step = self.caller.operation, self.caller.step
            _log.warning("work that was cut off failed", uid=self.uid, operation=operation, step=step, error=str(error))


class _Guest:
    """What is kept of one guest: its locks, the highest revision, and who holds the turn."""

    def __init__(self) -> None:
        self.admission = asyncio.Lock()
        self.lock = asyncio.Lock()
        self.highest: int | None = None  # None: not read from the claims yet.
        self.holder: Turn | None = None


class Turns:
    """Hands out the turns. Work goes on to its end when the caller who asked for it is lost or gives up."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._guests: dict[str, _Guest] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def run(
        self, uid: str, caller: Caller, work: Callable[[Turn], Awaitable[_T]], *, ends_with_caller: bool = False
    ) -> _T:
        """Admit the caller, wait for its turn, and do the work; `ends_with_caller`: its turn is over with the caller.

        Raises StaleClaim when a newer revision has been seen before or while waiting, Draining when the agent stops,
        and what the work raises. A newer revision also makes `Turn.check` raise in work that is under way.
        """
        if self._draining:
            raise Draining("this agent is stopping; call again when it is back")
        guest = self._guests.setdefault(uid, _Guest())
        await self._admit(guest, uid, caller)
        # The work is a task of its own: cancelling it half-way would let the next turn begin beside a libvirt call
        # that is still under way in its thread.
        turn = Turn(uid, caller)
        task = asyncio.create_task(self._in_turn(guest, turn, work))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if ends_with_caller:
                turn.give_up()
            raise

    async def run_unclaimed(self, uid: str, work: Callable[[], Awaitable[_T]]) -> _T:
        """The agent's own work on a guest, in turn with that of callers. Raises what the work raises."""
        async with self._guests.setdefault(uid, _Guest()).lock:
            return await work()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more work and wait for what runs, at most `timeout_s`. Answers whether all of it has ended."""
        self._draining = True
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)
        return not self._running

    async def end_at_once(self) -> None:
        """Cut off what runs, wherever it is, as the death of the process does."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _admit(self, guest: _Guest, uid: str, caller: Caller) -> None:
        async with guest.admission:
            if guest.highest is None:
                guest.highest = await self._claims.highest(uid)
            if caller.revision < guest.highest:
                raise _stale(uid, caller, guest.highest)
            if caller.revision > guest.highest:
                await self._claims.record(uid, caller.revision)
                guest.highest = caller.revision
            if guest.holder is not None:
                guest.holder.supersede(caller.revision)

    async def _in_turn(self, guest: _Guest, turn: Turn, work: Callable[[Turn], Awaitable[_T]]) -> _T:
        async with guest.lock:
            turn.supersede(guest.highest or 0)
            turn.check()
            guest.holder = turn
            try:
                return await work(turn)
            finally:
                guest.holder = None

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Told here too, since the caller may be gone.
            _log.info("a call on a guest failed", error=str(task.exception()))


def _stale(uid: str, caller: Caller, highest: int) -> StaleClaim:
    return StaleClaim(
        f"{caller.step} of {caller.operation} asks for guest {uid} by revision {caller.revision}, but has been "
        f"overtaken by revision {highest}: it comes late, or another controller has taken over",
        metadata={"highest_revision": str(highest)},
    )
