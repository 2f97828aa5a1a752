"""The serial consoles of this host's guests: their logs, and their sockets, which one at a time is attached to."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path

import structlog

from leeward.agent.types import ConsoleChunk
from leeward.errors import FailedPrecondition, NotFound, StorageError
from leeward_agent.domain.guest_files import ConsoleFiles
from leeward_agent.storage.names import checked_uid

_log = structlog.get_logger(__name__)

MAX_CHUNK_BYTES = 1024 * 1024
BACKLOG_BYTES = 1024 * 1024
TAKE_OVER_TIMEOUT_S = 10.0
_LOG = ".log"
_SOCKET = ".serial"


class _Backlog:
    """What was written and not taken yet. The guest is never made to wait: what is too old is dropped, and said so."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._size_bytes = 0
        self._dropped_bytes = 0
        self._changed = asyncio.Event()
        self.ended = False

    def put(self, data: bytes) -> None:
        self._items.append(data)
        self._size_bytes += len(data)
        while self._size_bytes > BACKLOG_BYTES:
            oldest = self._items.popleft()
            self._size_bytes -= len(oldest)
            self._dropped_bytes += len(oldest)
        self._changed.set()

    def end(self) -> None:
        self.ended = True
        self._changed.set()

    async def take(self) -> bytes | None:
        """What comes next; None at the end."""
        while not self._items and not self.ended:
            self._changed.clear()
            await self._changed.wait()
        if self._dropped_bytes:
            dropped, self._dropped_bytes = self._dropped_bytes, 0
            return f"\r\n[leeward: {dropped} bytes were too fast for this connection]\r\n".encode()
        if not self._items:
            return None
        data = self._items.popleft()
        self._size_bytes -= len(data)
        return data


class Session:
    """Somebody attached to a console. What the guest writes is taken at once, however slowly somebody reads."""

    def __init__(self, uid: str, source: AsyncGenerator[bytes, None]) -> None:
        self._uid = uid
        self._source = source
        self._backlog = _Backlog()
        self._taken_over = asyncio.Event()
        self._pumping = asyncio.create_task(self._pump())

    def take_over(self) -> None:
        """End it for somebody else."""
        self._taken_over.set()

    async def gone(self) -> None:
        """Wait until the console is let go."""
        await asyncio.wait((self._pumping,))

    async def close(self) -> None:
        """Let go of the console."""
        self._pumping.cancel()
        await self.gone()
        if not self._pumping.cancelled() and self._pumping.exception() is not None:
            # Who was attached has either been told, or has gone.
            _log.debug("a console ended", uid=self._uid, error=str(self._pumping.exception()))

    async def output(self) -> AsyncGenerator[bytes, None]:
        """What the guest writes.

        Raises what the source raises, and FailedPrecondition (CONSOLE_TAKEN_OVER) when it was ended for somebody else.
        """
        while (data := await self._backlog.take()) is not None:
            yield data
        await self._pumping

    async def _pump(self) -> None:
        over = asyncio.create_task(self._taken_over.wait())
        try:
            async with aclosing(self._source) as source:
                while (data := await self._next(source, over)) is not None:
                    self._backlog.put(data)
        finally:
            over.cancel()
            self._backlog.end()

    async def _next(self, source: AsyncGenerator[bytes, None], over: "asyncio.Task[bool]") -> bytes | None:
        """What comes next; None at the end."""
        reading = asyncio.ensure_future(anext(source, None))
        try:
            await asyncio.wait((reading, over), return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                raise FailedPrecondition(
                    f"somebody else has taken over the console of guest {self._uid}", reason="CONSOLE_TAKEN_OVER"
                )
            return reading.result()
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait((reading,))


class Consoles:
    """`logs` outlive the host's power, `sockets` do not."""

    def __init__(self, logs: Path, sockets: Path) -> None:
        self._logs = logs
        self._sockets = sockets
        self._sessions: dict[str, Session] = {}

    def files(self, uid: str) -> ConsoleFiles:
        """Where a guest's console is."""
        checked_uid(uid)
        return ConsoleFiles(log=self._logs / f"{uid}{_LOG}", socket=self._sockets / f"{uid}{_SOCKET}")

    async def read(self, uid: str, *, offset: int, limit_bytes: int) -> ConsoleChunk:
        """Up to `limit_bytes` (0: as much as one answer holds) from `offset`; a negative one counts from the end.

        Raises NotFound when the guest never ran here, StorageError.
        """
        limit = min(limit_bytes, MAX_CHUNK_BYTES) if limit_bytes > 0 else MAX_CHUNK_BYTES
        return await asyncio.to_thread(_read, self.files(uid).log, uid, offset, limit)

    async def remove_socket(self, uid: str) -> None:
        """Delete what a QEMU that was killed may have left. Raises StorageError."""
        await asyncio.to_thread(_remove, self.files(uid).socket)

    async def remove(self, uid: str) -> None:
        """Delete log and socket of a guest that has no process here. Raises StorageError."""
        await self.remove_socket(uid)
        await asyncio.to_thread(_remove, self.files(uid).log)

    async def quiet_logs(self, *, since: datetime) -> tuple[str, ...]:
        """The uids whose logs have not been written to since then. Raises StorageError."""
        return await asyncio.to_thread(_quiet, self._logs, since.timestamp())

    async def sockets(self) -> tuple[str, ...]:
        """The uids that there are sockets for. Raises StorageError."""
        return await asyncio.to_thread(_names, self._sockets, _SOCKET)

    async def attach(
        self, uid: str, open_source: Callable[[], AsyncGenerator[bytes, None]], *, take_over: bool
    ) -> AsyncGenerator[bytes, None]:
        """Be the one who is attached; see `Session.output`.

        Raises FailedPrecondition (CONSOLE_IN_USE) when somebody else is, and is not to be ended or does not end.
        """
        if take_over:
            await self._end_session(uid)
        if uid in self._sessions:
            raise FailedPrecondition(f"somebody is attached to the console of guest {uid}", reason="CONSOLE_IN_USE")
        session = Session(uid, open_source())
        self._sessions[uid] = session
        try:
            async with aclosing(session.output()) as output:
                async for data in output:
                    yield data
        finally:
            await session.close()
            # One that took over is registered here by now.
            if self._sessions.get(uid) is session:
                del self._sessions[uid]

    async def _end_session(self, uid: str) -> None:
        session = self._sessions.get(uid)
        if session is None:
            return
        session.take_over()
        try:
            async with asyncio.timeout(TAKE_OVER_TIMEOUT_S):
                await session.gone()
        except TimeoutError as error:
            raise FailedPrecondition(
                f"who is attached to the console of guest {uid} does not let go of it", reason="CONSOLE_IN_USE"
            ) from error
        if self._sessions.get(uid) is session:
            del self._sessions[uid]


def _read(path: Path, uid: str, offset: int, limit: int) -> ConsoleChunk:
    try:
        with path.open("rb") as log:
            end = log.seek(0, 2)
            start = max(0, end + offset) if offset < 0 else min(offset, end)
            log.seek(start)
            data = log.read(min(limit, end - start))
    except FileNotFoundError as error:
        raise NotFound(f"guest {uid} has no console log on this host") from error
    except OSError as error:
        raise StorageError(f"cannot read the console log of guest {uid}: {error}") from error
    return ConsoleChunk(data=data, next_offset=start + len(data), end_offset=end)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete {path}: {error}") from error


def _quiet(directory: Path, since_s: float) -> tuple[str, ...]:
    try:
        quiet = [path for path in directory.glob(f"*{_LOG}") if path.stat().st_mtime < since_s]
        return tuple(sorted(path.name.removesuffix(_LOG) for path in quiet))
    except OSError as error:
        raise StorageError(f"cannot list {directory}: {error}") from error


def _names(directory: Path, suffix: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(path.name.removesuffix(suffix) for path in directory.glob(f"*{suffix}")))
    except OSError as error:
        raise StorageError(f"cannot list {directory}: {error}") from error
