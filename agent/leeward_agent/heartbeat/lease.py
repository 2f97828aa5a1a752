"""The first heartbeat: the node's key in the store, held by a lease that the agent renews."""

import asyncio
from collections.abc import Callable

import structlog

from leeward.agent.types import NodeReport
from leeward.clock import Clock, await_event
from leeward.errors import InvalidArgument, LeaseNotFound, StoreIndefinite, StoreUnavailable
from leeward.store.port import KeyValue, ModRevisionIs, Put, Store

_log = structlog.get_logger(__name__)

Renewal = Callable[[float, float], None]


class LeaseHeartbeat:
    """Keeps `key` alive with the node's report as its value.

    A beat counts, from when it was sent, only when the lease was renewed *and* the key is still held by that lease:
    what the others watch is the key.

    A restarted agent takes the key over: it grants a lease of its own and puts the key under it in one transaction, so
    that the key is never gone, whatever became of the old agent's lease or its TTL. It does so only when the key is of
    the same boot of the host. A key of another boot is waited out, for at most a TTL after a real reboot. If it stays,
    another host lives under this name, and to replace its key would tell the cluster that this other host has rebooted
    and its guests are dead.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        key: str,
        boot_id: str,
        report: Callable[[], NodeReport | None],
        encode: Callable[[NodeReport], bytes],
        decode: Callable[[bytes], NodeReport],
        on_renewal: Renewal,
        ttl_s: int = 5,
        period_s: float = 1.0,
        retry_s: float = 0.25,
        deadline_s: float = 1.0,
    ) -> None:
        """`report` answers None while there is none yet. `on_renewal(sent_s, ttl_s)` is called at each beat that
        counts. `decode` raises InvalidArgument when a value is no report.
        """
        self._store = store
        self._clock = clock
        self._key = key
        self._boot_id = boot_id
        self._report = report
        self._encode = encode
        self._decode = decode
        self._on_renewal = on_renewal
        self._ttl_s = ttl_s
        self._period_s = period_s
        self._retry_s = retry_s
        self._deadline_s = deadline_s
        self._lease_id = 0
        self._published = False
        self._trouble = ""
        self._turn = asyncio.Lock()
        self._poked = asyncio.Event()

    @property
    def published(self) -> bool:
        """Whether a report of this agent has reached the store."""
        return self._published

    async def run(self) -> None:
        """Beat until cancelled. The lease is left to live on: the agent that comes next takes the key over."""
        while True:
            self._poked.clear()
            started_s = self._clock.monotonic_s()
            try:
                trouble = await self.beat()
            except (StoreUnavailable, StoreIndefinite) as error:
                trouble = error.message
            except TimeoutError:
                trouble = f"no answer within {self._deadline_s:g} s"
            self._note(trouble)
            spent_s = self._clock.monotonic_s() - started_s
            pause_s = self._retry_s if trouble else max(0.0, self._period_s - spent_s)
            await await_event(self._poked, clock=self._clock, within_s=pause_s)

    def poke(self) -> None:
        """Beat soon: the report has changed in a way that cannot wait."""
        self._poked.set()

    async def beat(self) -> str:
        """Renew once and publish the report if it has changed. Answers what is wrong, or nothing.

        Raises StoreUnavailable, StoreIndefinite, TimeoutError: then it is not known to be alive.
        """
        async with self._turn:
            if self._lease_id == 0:
                return await self._acquire()
            sent_s = self._clock.monotonic_s()
            granted_s = 0.0
            try:
                async with asyncio.timeout(2 * self._deadline_s):
                    granted_s = await self._store.keep_alive(self._lease_id, deadline_s=self._deadline_s)
                    held = await self._store.get(self._key)
            except LeaseNotFound:
                held = None
            if held is None or held.lease_id != self._lease_id:
                self._lease_id = 0
                return await self._acquire()
            self._on_renewal(sent_s, min(granted_s, self._ttl_s))
            await self._publish(held)
            return ""

    async def _acquire(self) -> str:
        async with asyncio.timeout(3 * self._deadline_s):
            held = await self._store.get(self._key)
            refusal = self._refusal(held)
            if refusal:
                return refusal
            value = self._value(held)
            if value is None:
                return "there is no report to publish yet"
            sent_s = self._clock.monotonic_s()
            lease_id = await self._store.grant_lease(self._ttl_s)
            condition = ModRevisionIs(self._key, held.mod_revision if held else 0)
            try:
                answer = await self._store.transact([condition], [Put(self._key, value, lease_id)])
            except StoreIndefinite:
                # It may be ours now. The next beat sees whether the key is held by this lease.
                self._lease_id = lease_id
                raise
            except LeaseNotFound:
                return "the lease ended before the key was written"
        if not answer.succeeded:
            return "somebody else wrote the node's key at the same moment"
        self._lease_id = lease_id
        self._published = self._published or self._report() is not None
        self._on_renewal(sent_s, self._ttl_s)
        return ""

    def _refusal(self, held: KeyValue | None) -> str:
        """Why the key must not be taken over now; nothing when it may. A key without a lease would never end."""
        if held is None or held.lease_id == 0:
            return ""
        try:
            boot_id = self._decode(held.value).boot_id
        except InvalidArgument:
            return "the node's key is held with a value that cannot be understood; waiting for it to end"
        if boot_id == self._boot_id:
            return ""
        return f"boot {boot_id} of a host with this name is alive still; waiting for it to end"

    def _value(self, held: KeyValue | None) -> bytes | None:
        """What to put into the key. Before the first report that is what the agent before this one reported."""
        report = self._report()
        if report is not None:
            return self._encode(report)
        return None if held is None else held.value

    async def _publish(self, held: KeyValue) -> None:
        report = self._report()
        if report is None:
            return
        value = self._encode(report)
        if value == held.value:
            self._published = True
            return
        async with asyncio.timeout(self._deadline_s):
            condition = ModRevisionIs(self._key, held.mod_revision)
            try:
                answer = await self._store.transact([condition], [Put(self._key, value, self._lease_id)])
            except LeaseNotFound:
                self._lease_id = 0
                return
        # When it was changed by someone else meanwhile, the next beat sees by whom.
        self._published = self._published or answer.succeeded

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("etcd heartbeat failed", key=self._key, why=trouble)
        elif self._trouble and not trouble:
            _log.info("etcd heartbeat is back", key=self._key)
        self._trouble = trouble
