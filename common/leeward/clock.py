"""Time, identity and chance as ports, so that a test can own them.

Decisions never read the machine's clock themselves: they are given a `Clock`. The simulation runs the same code on
virtual time, and one seed then decides everything.
"""

import asyncio
import base64
import random
import secrets
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Monotonic seconds measure; wall time only labels records for people."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back. Only differences mean anything, and only on one machine."""
        ...

    def now(self) -> datetime:
        """Wall time in UTC, for records. Never used to decide whether something is alive."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the caller for at least `seconds`."""
        ...

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """A context that raises TimeoutError when what is awaited in it takes longer."""
        ...


async def await_event(event: asyncio.Event, *, clock: Clock, within_s: float) -> bool:
    """Wait until the event is set; False when that takes longer than `within_s`."""
    try:
        async with clock.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False


class Ids(Protocol):
    """Where new identifiers come from."""

    def new(self) -> str:
        """A new identifier: 26 characters of `a-z2-7`, unique for all practical purposes."""
        ...


class Rng(Protocol):
    """Where chance comes from: spreading load and jittering retries, never safety."""

    def uniform(self, a: float, b: float) -> float:
        """A number between `a` and `b`."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds)


_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class RandomIds:
    """Identifiers of 130 random bits from the operating system."""

    def new(self) -> str:
        # Base 32 (RFC 4648) has the same letters, in capitals, five bits each.
        return base64.b32encode(secrets.token_bytes(17)).decode()[:26].lower()


class SeededIds:
    """Identifiers that a seed decides, for tests and simulation."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def new(self) -> str:
        return "".join(self._random.choice(_ALPHABET) for _ in range(26))
