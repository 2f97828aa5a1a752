"""The agent's side of the guard's socket."""

import asyncio
import os
import socket
from pathlib import Path

from leeward.errors import FailedPrecondition, InvalidArgument, Unavailable
from leeward_agent.guard.port import GuardStatus, Vouch
from leeward_agent.guard.protocol import (
    MAX_MESSAGE_BYTES,
    Answer,
    Arm,
    Disarm,
    ProtocolError,
    Request,
    Status,
    decode_answer,
    encode_request,
)


class SocketGuardClient:
    """A `GuardClient` for a guard in another process. Connects when needed, again after a guard's restart."""

    def __init__(self, path: Path, *, timeout_s: float = 1.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()

    async def arm(self, vouch: Vouch) -> GuardStatus:
        roots = tuple(os.fspath(root) for root in vouch.roots)
        arm = Arm(since_s=vouch.since_s, deadline_s=vouch.deadline_s, ttl_s=vouch.ttl_s, roots=roots)
        answer = await self._ask(arm)
        if answer.error:
            raise InvalidArgument(f"the guard refuses to be armed: {answer.error}")
        return _status(answer)

    async def disarm(self) -> GuardStatus:
        answer = await self._ask(Disarm())
        if answer.error:
            raise FailedPrecondition(f"the guard stays armed: {answer.error}", reason="GUESTS_RUNNING")
        return _status(answer)

    async def status(self) -> GuardStatus:
        return _status(await self._ask(Status()))

    async def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _ask(self, request: Request) -> Answer:
        async with self._turn:
            answered = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._ask_anew(encode_request(request))
                answered = True
            except (OSError, ProtocolError) as error:  # TimeoutError is an OSError.
                why = str(error) or f"no answer within {self._timeout_s:g} s"
                raise Unavailable(f"guard at {self._path}: {why}", reason="GUARD_UNAVAILABLE") from error
            finally:
                if not answered:
                    # An answer that comes later must not be taken for that of the next request.
                    await self.close()
            return answer

    async def _ask_anew(self, message: bytes) -> Answer:
        """Over the connection that is there, or a new one when that turns out dead: every request may be repeated."""
        if self._socket is not None:
            try:
                return await self._exchange(message)
            except ConnectionError:
                await self.close()  # The guard was restarted since.
        return await self._exchange(message)

    async def _exchange(self, message: bytes) -> Answer:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            await loop.sock_connect(self._socket, os.fspath(self._path))
        await loop.sock_sendall(self._socket, message)
        data = await loop.sock_recv(self._socket, MAX_MESSAGE_BYTES)
        if not data:
            raise ConnectionResetError("the guard has gone")
        return decode_answer(data)


def _status(answer: Answer) -> GuardStatus:
    return GuardStatus(
        armed=answer.armed,
        expired=answer.expired,
        deadline_s=answer.deadline_s,
        ttl_s=answer.ttl_s,
        delay_s=answer.delay_s,
        clear=answer.clear,
    )
