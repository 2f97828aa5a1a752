"""libvirt's events, over restarts of libvirtd.

Events only say *which* guest to look at: what it does is then asked from libvirt, so that nothing is derived from a
sequence of events that a restart of libvirtd may have cut.
"""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import libvirt
import structlog

from leeward.clock import Clock
from leeward.errors import HypervisorError
from leeward_agent.hypervisors.libvirt.connection import LibvirtConnections, VirConnect, VirDomain
from leeward_agent.hypervisors.libvirt.domain_xml import uid_of_domain_name

CONNECT_DEADLINE_S = 10.0
RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 2.0

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Subscription:
    """What one listener has not looked at yet."""

    changed: set[str] = field(default_factory=set)
    everything: bool = False
    closed: bool = False
    _wakeup: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, uid: str | None) -> None:
        """Note that a guest (None: any guest) may have changed."""
        if uid is None:
            self.everything = True
        else:
            self.changed.add(uid)
        self._wakeup.set()

    def close(self) -> None:
        """No more changes will come."""
        self.closed = True
        self._wakeup.set()

    async def next(self) -> set[str] | None:
        """Wait for changes or the end, and take them: the guests' uids, or None for all guests."""
        await self._wakeup.wait()
        self._wakeup.clear()
        changed, everything = self.changed, self.everything
        self.changed, self.everything = set(), False
        return None if everything else changed


class EventHub:
    """Keeps one connection for events, and tells listeners on the event loop."""

    def __init__(self, uri: str, *, clock: Clock) -> None:
        self._clock = clock
        self._connection = LibvirtConnections(
            uri, name="events", on_open=self._register, on_close=self._connection_lost
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._reboots: dict[str, set[asyncio.Event]] = {}
        self._awaited_jobs: dict[str, asyncio.Future[dict[str, int]]] = {}
        self._connected = asyncio.Event()

    def start(self) -> None:
        """Connect, and stay connected until closed. Call on the event loop; again is no error."""
        if self._supervisor is None:
            self._loop = asyncio.get_running_loop()
            self._supervisor = self._loop.create_task(self._stay_connected(), name="libvirt-events")

    def subscribe(self) -> Subscription:
        """A new listener, which first looks at every guest once connected; it ends when it is no longer referred to."""
        self.start()
        subscription = Subscription()
        if self._connected.is_set():
            subscription.add(None)
        self._subscriptions.add(subscription)
        return subscription

    async def connected(self, *, timeout_s: float) -> None:
        """Wait until events arrive. Raises HypervisorError after `timeout_s`."""
        self.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError as error:
            raise HypervisorError(f"no events from libvirt after {timeout_s:g} s") from error

    def watch_reboot(self, uid: str) -> asyncio.Event:
        """An event that is set when the guest's machine is reset; hand it to `unwatch_reboot` afterwards."""
        event = asyncio.Event()
        self._reboots.setdefault(uid, set()).add(event)
        return event

    def unwatch_reboot(self, uid: str, event: asyncio.Event) -> None:
        """Forget an event from `watch_reboot`."""
        watchers = self._reboots.get(uid, set())
        watchers.discard(event)
        if not watchers:
            self._reboots.pop(uid, None)

    def await_job(self, uid: str) -> None:
        """Keep the statistics of the guest's next job when it ends, until `take_job`."""
        self.start()
        self._awaited_jobs[uid] = asyncio.get_running_loop().create_future()

    def forget_job(self, uid: str) -> None:
        """Undo `await_job`."""
        self._awaited_jobs.pop(uid, None)

    async def take_job(self, uid: str, *, timeout_s: float) -> dict[str, int]:
        """The statistics of the job that ended since `await_job`; empty when none came within `timeout_s`."""
        job = self._awaited_jobs.pop(uid, None)
        if job is None:
            return {}
        await asyncio.wait([job], timeout=timeout_s)
        return job.result() if job.done() else {}

    async def close(self) -> None:
        """Stop listening; every listener's wait ends."""
        for subscription in list(self._subscriptions):
            subscription.close()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        self._connection.close()

    async def _stay_connected(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while True:
            self._lost.clear()
            try:
                # Opening is all that it takes.
                await self._connection.call("listen for events", lambda _: None, deadline_s=CONNECT_DEADLINE_S)
            except HypervisorError as error:
                _log.warning("no events from libvirt", error=error.message, retry_in_s=delay_s)
                await self._clock.sleep(delay_s)
                delay_s = min(2 * delay_s, RECONNECT_MAX_S)
                continue
            delay_s = RECONNECT_FIRST_S
            self._connected.set()
            self._tell(None)
            await self._lost.wait()
            self._connected.clear()

    def _connection_lost(self) -> None:
        self._lost.set()

    def _register(self, connection: VirConnect) -> None:
        events: list[tuple[int, Callable[..., None]]] = [
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_change),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._on_change),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._on_job_completed),
        ]
        for event_id, callback in events:
            connection.domainEventRegisterAny(None, event_id, callback, None)

    # These run in libvirt's event thread.

    def _on_change(self, _connection: VirConnect, domain: VirDomain, *_details: object) -> None:
        self._from_thread(domain, self._tell)

    def _on_reboot(self, _connection: VirConnect, domain: VirDomain, _opaque: object) -> None:
        self._from_thread(domain, self._tell_reboot)

    def _on_job_completed(
        self, _connection: VirConnect, domain: VirDomain, stats: dict[str, int], _opaque: object
    ) -> None:
        def keep(uid: str) -> None:
            job = self._awaited_jobs.get(uid)
            if job is not None and not job.done():
                job.set_result(stats)

        self._from_thread(domain, keep)

    def _from_thread(self, domain: VirDomain, function: Callable[[str], None]) -> None:
        uid = uid_of_domain_name(domain.name())
        if uid is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, uid)

    # These run on the event loop.

    def _tell(self, uid: str | None) -> None:
        for subscription in list(self._subscriptions):
            subscription.add(uid)

    def _tell_reboot(self, uid: str) -> None:
        for event in self._reboots.get(uid, set()):
            event.set()
