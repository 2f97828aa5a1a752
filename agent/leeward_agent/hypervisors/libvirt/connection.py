"""Connections to libvirtd: blocking calls in threads with a deadline, reopened when libvirtd comes back.

A connection is used by one thread only, and asks for no keepalives. libvirt's client serves several calls on one
connection by letting the thread that reads the socket be woken by the others and by its keepalive timer, and up to
version 10.3 the woken thread leaves a pointer into its stack behind, which the next one follows (CVE-2024-4418). Debian
12 has version 9.0: a libvirtd that hung for ten seconds ended an agent whose threads shared connections with a
segmentation fault. A socket on the same host needs no keepalive: it closes when libvirtd ends, and while libvirtd hangs
calls have their deadlines.

libvirt's events run in a thread of their own with libvirt's default event loop, not on asyncio through `libvirtaio`:
libvirt calls the event loop's functions from whichever thread makes a call, and `libvirtaio` hands them to asyncio
functions that are not thread-safe. It is also registered once a process for one loop, and the socket must be read even
while our loop is busy.
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

_log = structlog.get_logger(__name__)
_event_thread_lock = threading.Lock()
_event_thread: threading.Thread | None = None


class LibvirtConnections:
    """Up to `most` threads, each with a connection of its own that it opens when first needed and when it is lost.

    `on_open` runs in the thread on each new connection, before it is used; `on_close` on the event loop when one is
    lost. Everything here but the blocking functions belongs to the event loop.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        most: int = 1,
        on_open: Callable[[VirConnect], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._uri = uri
        self._name = name
        self._on_open = on_open
        self._on_close = on_close
        self._workers = Workers(f"libvirt-{name}", threads=most, at_end=self._end_thread)
        self._of_thread = threading.local()
        self._closed = False

    async def call(self, what: str, function: Callable[[VirConnect], T], *, deadline_s: float) -> T:
        """Run `function` with a connection in its thread, and return what it returns.

        Raises HypervisorError, saying `what` was being done, when libvirt reports an error or `deadline_s` is over:
        then it may have happened, or may still happen.
        """
        if self._closed:
            raise HypervisorError(f"{what}: the connection to libvirt was closed")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline_s):
                # A connection that is lost in the middle of a call is opened again by the next one.
                return await asyncio.wrap_future(self._workers.submit(lambda: function(self._connection(loop))))
        except TimeoutError as error:
            raise HypervisorError(f"{what}: libvirt did not answer within {deadline_s:g} s") from error
        except _NoConnection as error:
            raise HypervisorError(f"{what}: no connection to libvirt: {error}") from error
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{what}: {error}", metadata={"libvirt_code": str(error.get_error_code())}) from error

    def close(self) -> None:
        """Let each thread close its connection after what it is doing. Guests, and what libvirtd is doing, go on."""
        self._closed = True
        self._workers.stop()

    # These run in the threads.

    def _connection(self, loop: asyncio.AbstractEventLoop) -> VirConnect:
        connection: VirConnect | None = getattr(self._of_thread, "connection", None)
        if connection is not None and connection.isAlive():
            return connection
        self._of_thread.connection = None
        try:
            self._of_thread.connection = self._open(loop)
        except libvirt.libvirtError as error:
            raise _NoConnection(str(error)) from error
        return self._of_thread.connection

    def _open(self, loop: asyncio.AbstractEventLoop) -> VirConnect:
        def lost(_connection: VirConnect, reason: int, _opaque: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._lost, reason)

        start_event_thread()
        connection = libvirt.open(self._uri)
        connection.registerCloseCallback(lost, None)
        if self._on_open is not None:
            self._on_open(connection)
        return connection

    def _end_thread(self) -> None:
        connection: VirConnect | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            return
        try:
            connection.unregisterCloseCallback()
            connection.close()
        except libvirt.libvirtError as error:
            # It is going away because libvirtd did; there is nothing left to let go of.
            _log.debug("closing a lost connection", error=str(error))

    # This runs on the event loop.

    def _lost(self, reason: int) -> None:
        if self._closed:
            return
        _log.warning("connection to libvirt lost", connection=self._name, reason=_CLOSE_REASONS.get(reason, reason))
        if self._on_close is not None:
            self._on_close()


class _NoConnection(Exception):
    """libvirtd does not take a connection; it says why."""


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
