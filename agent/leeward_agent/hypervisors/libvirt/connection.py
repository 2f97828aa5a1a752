"""One connection to libvirtd: blocking calls in threads with a deadline, reopened when libvirtd comes back.

libvirt's events run in a thread of their own with libvirt's default event loop, not on asyncio through `libvirtaio`:
libvirt calls the event loop's functions from whichever thread makes a call, and `libvirtaio` hands them to asyncio
functions that are not thread-safe. It is also registered once a process for one loop, and keepalive must be answered
even while our loop is busy.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import libvirt
import structlog

from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.workers import Workers

# The binding's own annotations are wrong in places (it declares `jobStats` to return `str`), so they are not used.
VirConnect: TypeAlias = Any
VirDomain: TypeAlias = Any

T = TypeVar("T")

# libvirtd allows five calls at a time on a connection (`max_client_requests`) and stops reading, so that keepalives
# fail, beyond that.
MAX_CALLS_PER_CONNECTION = 4

# A stopped libvirtd is noticed after KEEPALIVE_INTERVAL_S * (KEEPALIVE_COUNT + 1); its calls then end with an error.
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_COUNT = 3

OPEN_DEADLINE_S = 10.0
_LOST_KEPT_S = 5.0

_log = structlog.get_logger(__name__)
_event_thread_lock = threading.Lock()
_event_thread: threading.Thread | None = None


class LibvirtConnection:
    """One connection and the threads that use it, opened when first needed.

    `on_open` runs in a thread on each new connection, before it is used; `on_close` on the event loop when it is lost.
    Everything here but the blocking functions belongs to the event loop.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        on_open: Callable[[VirConnect], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._uri = uri
        self._name = name
        self._on_open = on_open
        self._on_close = on_close
        self._workers = Workers(f"libvirt-{name}", threads=MAX_CALLS_PER_CONNECTION)
        # Opening has its own thread: it may hang for as long as libvirtd is stopped, and then nothing else can run.
        self._opener = Workers(f"libvirt-{name}-open", threads=1)
        self._opening: asyncio.Future[VirConnect] | None = None
        self._connection: VirConnect | None = None
        self._closed = False

    async def call(self, what: str, function: Callable[[VirConnect], T], *, deadline_s: float) -> T:
        """Run `function` with the connection in a thread, and return what it returns.

        Raises HypervisorError, saying `what` was being done, when libvirt reports an error or `deadline_s` is over:
        then it may have happened, or may still happen.
        """
        try:
            async with asyncio.timeout(deadline_s):
                connection = await self.open(what)
                return await asyncio.wrap_future(self._workers.submit(lambda: function(connection)))
        except TimeoutError as error:
            raise HypervisorError(f"{what}: libvirt did not answer within {deadline_s:g} s") from error
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{what}: {error}", metadata={"libvirt_code": str(error.get_error_code())}) from error

    async def open(self, what: str) -> VirConnect:
        """The open connection, opening it if there is none. Raises HypervisorError."""
        if self._closed:
            raise HypervisorError(f"{what}: the connection to libvirt was closed")
        if self._connection is not None:
            return self._connection
        if self._opening is None:
            self._opening = asyncio.wrap_future(self._opener.submit(self._open_blocking(asyncio.get_running_loop())))
            self._opening.add_done_callback(self._opened)
        try:
            async with asyncio.timeout(OPEN_DEADLINE_S):
                # Others may be waiting for the same attempt, and it is used even when it ends after this deadline.
                return await asyncio.shield(self._opening)
        except TimeoutError as error:
            raise HypervisorError(f"{what}: no connection to libvirt within {OPEN_DEADLINE_S:g} s") from error
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{what}: no connection to libvirt: {error}") from error

    async def close(self) -> None:
        """Close the connection. Guests, and what libvirtd is doing, go on."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            closing = self._opener.submit(lambda: _close(connection))
            await asyncio.wait([asyncio.wrap_future(closing)], timeout=OPEN_DEADLINE_S)
        self._workers.stop()
        self._opener.stop()

    def _open_blocking(self, loop: asyncio.AbstractEventLoop) -> Callable[[], VirConnect]:
        def lost(connection: VirConnect, reason: int, _opaque: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._lost, connection, reason)

        def open_it() -> VirConnect:
            start_event_thread()
            connection = libvirt.open(self._uri)
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            connection.registerCloseCallback(lost, None)
            if self._on_open is not None:
                self._on_open(connection)
            if self._closed:
                _close(connection)
            return connection

        return open_it

    def _opened(self, opening: "asyncio.Future[VirConnect]") -> None:
        self._opening = None
        if opening.exception() is None and not self._closed:
            self._connection = opening.result()

    def _lost(self, connection: VirConnect, reason: int) -> None:
        if self._closed or connection is not self._connection:
            return
        _log.warning("connection to libvirt lost", connection=self._name, reason=_CLOSE_REASONS.get(reason, reason))
        self._connection = None
        # Whoever drops the last reference closes it, which may block; that must not be the event loop.
        threading.Thread(target=_keep_for_a_while, args=(connection,), name="libvirt-lost", daemon=True).start()
        if self._on_close is not None:
            self._on_close()


_CLOSE_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "error",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirtd ended",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd does not answer",
    libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "closed here",
}


def start_event_thread() -> None:
    """Start the process's one thread for libvirt's events, before the first connection is opened."""
    global _event_thread
    with _event_thread_lock:
        if _event_thread is None:
            libvirt.virEventRegisterDefaultImpl()
            # Errors reach us as exceptions; libvirt would also print each to standard error.
            libvirt.registerErrorHandler(_ignore_error, None)
            _event_thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_thread.start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _ignore_error(_context: object, _error: object) -> None:
    return


def _keep_for_a_while(_connection: VirConnect) -> None:
    threading.Event().wait(_LOST_KEPT_S)


def _close(connection: VirConnect) -> None:
    try:
        connection.unregisterCloseCallback()
        connection.close()
    except libvirt.libvirtError as error:
        # It is going away because libvirtd did; there is nothing left to let go of.
        _log.debug("closing a lost connection", error=str(error))
