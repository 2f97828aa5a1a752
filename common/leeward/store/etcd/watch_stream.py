"""One watch on one member."""

import asyncio

import grpc

from leeward.clock import Clock
from leeward.errors import StoreUnavailable
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd import convert, methods
from leeward.store.etcd.failures import translate
from leeward.store.etcd.member import Member, is_cancelled

# After so long without a message the member is asked for a sign of life.
_QUIET_S = 1.0
_WRITE_S = 1.0

_Call = grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]


class Silent(StoreUnavailable):
    """The member gave no sign of life."""


class WatchStream:
    """A stream that ends in an error rather than in silence.

    A reader may give up waiting and come back: the read it started goes on meanwhile.
    """

    def __init__(self, member: Member, clock: Clock) -> None:
        self.member = member
        self._clock = clock
        self._what = f"{methods.WATCH.path} at {member.endpoint}"
        self._call: _Call | None = None
        self._reading: asyncio.Task[pb.WatchResponse] | None = None
        # When the read began, and when the member was asked for a sign of life, if it was since then.
        self._quiet_since = 0.0
        self._asked_at: float | None = None

    async def start(self, prefix: str, start_revision: int, *, timeout_s: float) -> None:
        """Ask for the changes of `prefix`. Raises what `failures.translate` makes of an error."""
        key, range_end = convert.range_of(prefix)
        create = pb.WatchCreateRequest(
            key=key, range_end=range_end, start_revision=start_revision, progress_notify=True, fragment=True
        )
        self._call = self.member.stream(methods.WATCH)
        await self._write(self._call, pb.WatchRequest(create_request=create), timeout_s=timeout_s)

    async def receive(self, *, patience_s: float) -> pb.WatchResponse:
        """The next message. After a quiet while the member is asked for one and has `patience_s` to answer.

        Raises Silent, or what `failures.translate` makes of an error.
        """
        call, reading = self._call, self._reading
        if call is None:
            raise StoreUnavailable(f"{self._what}: closed")
        if reading is None:
            self._quiet_since = self._clock.monotonic_s()
            self._asked_at = None
            reading = self._reading = asyncio.create_task(self._read(call))
        if self._asked_at is None and not await self._arrived(reading, by=self._quiet_since + _QUIET_S):
            ping = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
            await self._write(call, ping, timeout_s=_WRITE_S)
            self._asked_at = self._clock.monotonic_s()
        if self._asked_at is not None and not await self._arrived(reading, by=self._asked_at + patience_s):
            raise Silent(f"{self._what}: no sign of life in {_QUIET_S + patience_s:.1f} s")
        self._reading = None
        return reading.result()

    async def _arrived(self, reading: asyncio.Task[pb.WatchResponse], *, by: float) -> bool:
        await asyncio.wait({reading}, timeout=max(0.0, by - self._clock.monotonic_s()))
        return reading.done()

    async def close(self) -> None:
        """End the call."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        reading, self._reading = self._reading, None
        if reading is not None:
            # How the read ended matters to nobody any more.
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, call: _Call) -> pb.WatchResponse:
        try:
            message = await call.read()
        except grpc.aio.AioRpcError as error:
            raise translate(error, what=self._what) from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise StoreUnavailable(f"{self._what}: closed") from None
        if not isinstance(message, pb.WatchResponse):
            raise StoreUnavailable(f"{self._what}: the member ended the stream")
        return message

    async def _write(self, call: _Call, request: pb.WatchRequest, *, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await call.write(request)
        except TimeoutError:
            raise Silent(f"{self._what}: took no message in {timeout_s:.1f} s") from None
        except grpc.aio.AioRpcError as error:
            raise translate(error, what=self._what) from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise StoreUnavailable(f"{self._what}: closed") from None
        except asyncio.InvalidStateError:
            raise StoreUnavailable(f"{self._what}: the stream has ended") from None
