"""One live migration that leaves this host, and those who follow it."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from leeward.agent.types import (
    GuestSpec,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
)

ENDS = frozenset({MigrationPhase.COMPLETED, MigrationPhase.FAILED, MigrationPhase.CANCELLED})


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """What is asked: the operation it is for, the guest, where to, and the bounds."""

    operation: str
    spec: GuestSpec
    destination: MigrationDestination
    limits: MigrationLimits


class MigrationJob:
    """One migration and what is known of it so far."""

    def __init__(self, operation: str, uid: str) -> None:
        self.operation = operation
        self.uid = uid
        self._latest = MigrationProgress(MigrationPhase.PREPARING)
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._latest.phase in ENDS

    @property
    def latest(self) -> MigrationProgress:
        return self._latest

    def tell(self, progress: MigrationProgress) -> None:
        """Let all followers know."""
        self._latest = progress
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncGenerator[MigrationProgress, None]:
        """The latest progress, then each new one that the follower is quick enough for, up to the outcome."""
        while True:
            version, progress, changed = self._version, self._latest, self._changed
            yield progress
            if progress.phase in ENDS:
                return
            if version == self._version:
                await changed.wait()

    async def end(self) -> MigrationProgress:
        """Wait for the outcome."""
        while not self.ended:
            await self._changed.wait()
        return self._latest
