"""Group commit: transactions that would queue up at the store go to it together, as one.

A few are under way at a time. Those that come meanwhile wait, and then go as one, as many of them as touch nothing that
another one of them writes; the first sends for all. A transaction is all or nothing, so when the one made of several
does not succeed, each is sent by itself, and ends as it would have ended alone.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from leeward.errors import LeewardError, StoreIndefinite, StoreUnavailable
from leeward.store.port import (
    MAX_OPERATIONS_PER_TRANSACTION,
    MAX_REQUEST_BYTES,
    Condition,
    Mutation,
    Put,
    Store,
    Transaction,
)

_MOST_UNDER_WAY = 2
_MOST_TOGETHER = 32
_MOST_BYTES = MAX_REQUEST_BYTES // 4


class _Waiting:
    """One transaction that waits: for its outcome, or for its turn to send a group that begins with itself."""

    def __init__(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> None:
        self.conditions = conditions
        self.mutations = mutations
        self.answer: asyncio.Future[Transaction | _Group] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: Transaction | BaseException) -> None:
        """Tell the one who waits, unless it waits no more."""
        if self.answer.done():
            return
        if isinstance(outcome, Transaction):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)


class _Group:
    """Transactions that can go as one, in this order: none touches what one before it writes."""

    def __init__(self) -> None:
        self.members: list[_Waiting] = []
        self.conditions: dict[Condition, None] = {}
        self.mutations: list[Mutation] = []
        self._written: set[str] = set()
        self._size_bytes = 0

    def takes(self, new: _Waiting) -> bool:
        """Add it, unless it does not fit. The first one always does."""
        conditions = self.conditions | dict.fromkeys(new.conditions)
        touched = {each.key for each in (*new.conditions, *new.mutations)}
        size_bytes = self._size_bytes + sum(len(each.value) for each in new.mutations if isinstance(each, Put))
        most = max(len(conditions), len(self.mutations) + len(new.mutations))
        too_much = most > MAX_OPERATIONS_PER_TRANSACTION or size_bytes > _MOST_BYTES
        if self.members and (too_much or not self._written.isdisjoint(touched)):
            return False
        self.members.append(new)
        self.conditions = conditions
        self.mutations += new.mutations
        self._written.update(each.key for each in new.mutations)
        self._size_bytes = size_bytes
        return True


class GroupCommit:
    """`Store.transact` for all writers of one process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way = 0
        self._waiting: deque[_Waiting] = deque()

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        """See `Store.transact`, also for what it raises. StoreIndefinite, too, when who sent it with others is gone."""
        if self._under_way < _MOST_UNDER_WAY:
            self._under_way += 1
            return await self._in_turn(self._store.transact(conditions, mutations))
        own = _Waiting(conditions, mutations)
        self._waiting.append(own)
        try:
            answer = await own.answer
        except asyncio.CancelledError:
            self._give_up(own)
            raise
        return await self._in_turn(self._send(answer)) if isinstance(answer, _Group) else answer

    async def _in_turn(self, sending: Coroutine[Any, Any, Transaction]) -> Transaction:
        try:
            return await sending
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """One that was under way is not any more: let those go that wait."""
        self._under_way -= 1
        while self._under_way < _MOST_UNDER_WAY and (group := self._next_group()).members:
            self._under_way += 1
            group.members[0].answer.set_result(group)

    def _next_group(self) -> _Group:
        """Of those that wait, as many as can go together. One that was cancelled in this instant is not sent."""
        group, left = _Group(), deque[_Waiting]()
        while self._waiting and len(group.members) < _MOST_TOGETHER:
            each = self._waiting.popleft()
            if not each.answer.done() and not group.takes(each):
                left.append(each)
        self._waiting.extendleft(reversed(left))
        return group

    def _give_up(self, own: _Waiting) -> None:
        """Nobody waits for it any more: it is not sent, unless another one is just sending it."""
        if own in self._waiting:
            self._waiting.remove(own)
        elif not own.answer.cancelled() and isinstance(group := own.answer.result(), _Group):
            # It was to send, and is gone before it could.
            self._waiting.extendleft(reversed(group.members[1:]))
            self._pass_on()

    async def _send(self, group: _Group) -> Transaction:
        own, *others = group.members
        if not others:
            return await self._store.transact(own.conditions, own.mutations)
        try:
            outcome = await self._send_together(group)
            if outcome is None:
                return await self._send_each(group)
        except (StoreUnavailable, StoreIndefinite) as error:
            _settle(others, error)
            raise
        except BaseException:
            _settle(others, StoreIndefinite("who sent it together with others is gone"))
            raise
        _settle(others, outcome)
        return outcome

    async def _send_together(self, group: _Group) -> Transaction | None:
        """None when nothing was written: which of them stands against it is not told."""
        try:
            outcome = await self._store.transact(tuple(group.conditions), group.mutations)
        except (StoreUnavailable, StoreIndefinite):
            raise
        except LeewardError:
            return None
        return outcome if outcome.succeeded else None

    async def _send_each(self, group: _Group) -> Transaction:
        sendings = (self._store.transact(each.conditions, each.mutations) for each in group.members)
        outcomes = await asyncio.gather(*sendings, return_exceptions=True)
        for each, outcome in zip(group.members, outcomes, strict=True):
            if each is not group.members[0]:
                each.settle(outcome)
        if isinstance(outcomes[0], BaseException):
            raise outcomes[0]
        return outcomes[0]


def _settle(waiting: Iterable[_Waiting], outcome: Transaction | BaseException) -> None:
    for each in waiting:
        each.settle(outcome)
