"""Calls that are late, fail, or end without an answer: what a network and a busy store do to their callers."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import TypeVar

from leeward.clock import Clock
from leeward.errors import AgentIndefinite, AgentUnavailable, LeaseNotFound, StoreIndefinite, StoreUnavailable
from leeward.store.port import Condition, KeyValue, Mutation, Range, Store, Transaction, WatchBatch

T = TypeVar("T")

_REPEATED = frozenset(
    {
        "cancel_migration",
        "claim_run_epoch",
        "confirm_disk",
        "create_disk",
        "delete_disk",
        "discard_memory",
        "drop_rescue_disk",
        "inject_nmi",
        "migrate_guest",
        "pause_guest",
        "pull_disk",
        "reboot_guest",
        "remove_guest",
        "replace_disk",
        "resize_disk",
        "resume_guest",
        "revert_disk",
        "snapshot_disk",
        "start_guest",
        "stop_guest",
        "suspend_guest",
        "wake_guest",
    }
)


@dataclass(slots=True)
class Weather:
    """What calls have to bear. The shares are of 1: `fails` before anything happened, `loses` the answer, and of writes
    `late` ones happen seconds after their caller gave up. Each way takes up to `delay_s` longer.
    """

    fails: float = 0.0
    loses: float = 0.0
    late: float = 0.0
    delay_s: float = 0.0
    repeats: float = 0.0  # Of calls to agents, the share that arrives once more, later.
    stalled: bool = False  # Watches tell nothing meanwhile.

    def clear(self) -> None:
        """Fair again."""
        self.fails = self.loses = self.late = self.delay_s = self.repeats = 0.0
        self.stalled = False


@dataclass(slots=True)
class Climate:
    """The weather of everybody: towards the store by who calls, towards agents by whom they call."""

    rng: random.Random
    clock: Clock
    store: dict[str, Weather] = field(default_factory=dict)
    agents: dict[str, Weather] = field(default_factory=dict)

    def at_store(self, name: str) -> Weather:
        """What the part of that name has to bear when it calls the store."""
        return self.store.setdefault(name, Weather())

    def at_agent(self, node: str) -> Weather:
        """What controllers have to bear when they call the agent of that node."""
        return self.agents.setdefault(node, Weather())

    def clear(self) -> None:
        """Fair everywhere."""
        for weather in (*self.store.values(), *self.agents.values()):
            weather.clear()

    def wrap_store(self, store: Store, name: str) -> Store:
        """The store as that part has it."""
        return WeatheredStore(store, self.at_store(name), rng=self.rng, clock=self.clock)

    def agent_hook(self, controller: str) -> Callable[[str, str], Awaitable[None]]:
        """The hook around a controller's calls to agents, which all have the same to bear."""
        return self._on_agent

    def repeats(self, node: str, method: str) -> float | None:
        """After how many seconds a call arrives at the agent once more, if it does."""
        weather = self.agents.get(node)
        if weather is None or not weather.repeats or method not in _REPEATED:
            return None
        return self.rng.uniform(0.01, 6.0) if self.rng.random() < weather.repeats else None

    async def _on_agent(self, node: str, method: str) -> None:
        weather = self.at_agent(node)
        if weather.delay_s:
            await self.clock.sleep(self.rng.uniform(0.0, weather.delay_s))
        if method.startswith("before "):
            if self.rng.random() < weather.fails:
                raise AgentUnavailable(f"nodes/{node}: the call was lost on its way")
        elif self.rng.random() < weather.loses:
            raise AgentIndefinite(f"nodes/{node}: the answer was lost")


class WeatheredStore:
    """A `Store` that has to be reached through the weather."""

    def __init__(self, store: Store, weather: Weather, *, rng: random.Random, clock: Clock) -> None:
        self._store = store
        self._weather = weather
        self._rng = rng
        self._clock = clock
        self._late: dict[asyncio.Task[None], None] = {}

    async def get(self, key: str) -> KeyValue | None:
        await self._there()
        return await self._back(await self._store.get(key))

    async def list(
        self, prefix: str, *, limit: int = 0, start_after: str = "", revision: int = 0, keys_only: bool = False
    ) -> Range:
        await self._there()
        found = await self._store.list(
            prefix, limit=limit, start_after=start_after, revision=revision, keys_only=keys_only
        )
        return await self._back(found)

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        await self._there()
        if self._happens(self._weather.late):
            self._happen_later(lambda: self._store.transact(conditions, mutations))
            raise StoreIndefinite("no answer in time")
        outcome = await self._store.transact(conditions, mutations)
        if self._happens(self._weather.loses):
            raise StoreIndefinite("the answer was lost")
        await self._pass()
        return outcome

    def watch(self, prefix: str, *, from_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return self._watch(prefix, from_revision)

    @asynccontextmanager
    async def _watch(self, prefix: str, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        async with self._store.watch(prefix, from_revision=from_revision) as batches:
            yield self._in_time(batches)

    async def _in_time(self, batches: AsyncIterator[WatchBatch]) -> AsyncIterator[WatchBatch]:
        async for batch in batches:
            while self._weather.stalled:
                await self._clock.sleep(0.1)
            await self._pass()
            yield batch

    async def grant_lease(self, ttl_s: int) -> int:
        await self._there()
        return await self._back(await self._store.grant_lease(ttl_s))

    async def keep_alive(self, lease_id: int, *, deadline_s: float = 1.0) -> float:
        try:
            async with asyncio.timeout(deadline_s):
                await self._there()
                return await self._back(await self._store.keep_alive(lease_id, deadline_s=deadline_s))
        except TimeoutError as error:
            raise StoreUnavailable("no answer in time") from error

    async def revoke_lease(self, lease_id: int) -> None:
        await self._there()
        await self._store.revoke_lease(lease_id)
        await self._back(None)

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        """The store itself is closed by whoever made it."""

    async def _there(self) -> None:
        await self._pass()
        if self._happens(self._weather.fails):
            raise StoreUnavailable("the call was lost on its way")

    async def _back(self, answer: T) -> T:
        if self._happens(self._weather.loses):
            raise StoreUnavailable("the answer was lost")
        await self._pass()
        return answer

    async def _pass(self) -> None:
        if self._weather.delay_s:
            await self._clock.sleep(self._rng.uniform(0.0, self._weather.delay_s))

    def _happens(self, share: float) -> bool:
        return bool(share) and self._rng.random() < share

    def _happen_later(self, write: Callable[[], Awaitable[Transaction]]) -> None:
        async def later() -> None:
            await self._clock.sleep(self._rng.uniform(0.1, 4.0))
            try:
                await write()
            except (LeaseNotFound, StoreUnavailable):
                return  # Nobody waits for it any more.

        # In no caller's context: it is on its way, even if its sender is stopped.
        task = asyncio.get_running_loop().create_task(later(), context=Context())
        self._late[task] = None
        task.add_done_callback(lambda done: self._late.pop(done, None))
