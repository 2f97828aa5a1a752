"""Watches that outlive the member they run on, and neither miss nor repeat a change."""

from types import TracebackType
from typing import Self

from leeward.clock import Clock
from leeward.errors import Compacted, Unavailable
from leeward.store.etcd.cursor import Cursor
from leeward.store.etcd.members import CONNECT_S, Members
from leeward.store.etcd.watch_stream import Silent, WatchStream
from leeward.store.port import WatchBatch

_PATIENCE_S = 1.5
# A member that is busy with a long history may be slow to give a sign of life; do not chase it around for ever.
_LONGEST_PATIENCE_S = 12.0
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0


class Watch:
    """An iterator over a prefix's changes. Nothing is read ahead but one message, so a slow reader slows etcd."""

    def __init__(self, members: Members, clock: Clock, prefix: str, *, from_revision: int) -> None:
        self._members = members
        self._clock = clock
        self._prefix = prefix
        self._cursor = Cursor(from_revision)
        self._stream: WatchStream | None = None
        self._stopped = False
        self._patience_s = _PATIENCE_S
        self._failures_in_row = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._stopped:
            try:
                batch = await self._next_message()
            except Silent as error:
                self._patience_s = min(self._patience_s * 2, _LONGEST_PATIENCE_S)
                await self._lose_stream(error)
            except Unavailable as error:
                await self._lose_stream(error)
            except Compacted:
                await self.stop()
                raise
            else:
                if batch is not None:
                    return batch
        raise StopAsyncIteration

    async def stop(self) -> None:
        """End the iteration, also for a reader that is waiting."""
        self._stopped = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _next_message(self) -> WatchBatch | None:
        if self._stream is None:
            self._stream = await self._start()
        message = await self._stream.receive(patience_s=self._patience_s)
        batch = self._cursor.take(message)
        if not message.created:
            self._failures_in_row = 0
            self._patience_s = _PATIENCE_S
        return batch

    async def _start(self) -> WatchStream:
        member = self._members.in_order()[0]
        stream = WatchStream(member, self._clock)
        self._cursor.restart()
        try:
            await member.connect(timeout_s=CONNECT_S)
            await stream.start(self._prefix, self._cursor.start_revision, timeout_s=CONNECT_S)
        except Unavailable:
            self._members.failed(member)
            raise
        return stream

    async def _lose_stream(self, error: Unavailable) -> None:
        """Go on with another member, at once if it is the first failure in a row."""
        stream, self._stream = self._stream, None
        if stream is not None:
            if stream.member is self._members.in_order()[0]:
                self._members.failed(stream.member)
            await stream.close()
        if self._failures_in_row and not self._stopped:
            await self._clock.sleep(min(_PAUSE_S * self._failures_in_row, _LONGEST_PAUSE_S))
        self._failures_in_row += 1
