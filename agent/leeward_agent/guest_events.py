"""The hypervisor's events, for any number of listeners."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import structlog

from leeward.agent.types import GuestStatus
from leeward.clock import Clock
from leeward.errors import HypervisorError, Unavailable
from leeward_agent.ports import Hypervisor

_log = structlog.get_logger(__name__)

_BACKLOG = 1000
_RETRY_S = 1.0


class Listener:
    """Changes since the listener was made, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[GuestStatus] = asyncio.Queue(_BACKLOG)
        self._overrun = False

    def offer(self, status: GuestStatus) -> None:
        try:
            self._queue.put_nowait(status)
        except asyncio.QueueFull:
            self._overrun = True

    async def next(self) -> GuestStatus:
        """The next change. Raises Unavailable when changes came faster than they were taken: begin anew then."""
        if self._overrun:
            raise Unavailable(f"more than {_BACKLOG} changes were not taken in time: watch again")
        return await self._queue.get()


class GuestEvents:
    """Passes on what the hypervisor reports. `run` must be running for that."""

    def __init__(self, hypervisor: Hypervisor, *, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._clock = clock
        self._listeners: dict[Listener, None] = {}  # In the order in which they came.

    async def run(self) -> None:
        """Follow the hypervisor until cancelled. After a gap every guest's state is passed on anew."""
        while True:
            try:
                async for status in self._hypervisor.events():
                    self._publish(status)
                _log.warning("the hypervisor ended its events")
            except HypervisorError as error:
                _log.warning("the hypervisor's events broke off", error=error.message)
            await self._clock.sleep(_RETRY_S)
            await self._republish()

    async def _republish(self) -> None:
        try:
            for status in await self._hypervisor.list_guests():
                self._publish(status)
        except HypervisorError as error:
            _log.warning("guests could not be listed after a gap in events", error=error.message)

    def _publish(self, status: GuestStatus) -> None:
        for listener in self._listeners:
            listener.offer(status)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """A listener for what is reported from now on."""
        listener = Listener()
        self._listeners[listener] = None
        try:
            yield listener
        finally:
            del self._listeners[listener]

    async def watch(self) -> AsyncGenerator[GuestStatus, None]:
        """The state of every guest now, then each change."""
        with self.listening() as listener:
            for status in await self._hypervisor.list_guests():
                yield status
            while True:
                yield await listener.next()
