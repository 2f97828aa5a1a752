"""The live migrations of one host's guests over libvirt: those that this driver began, and those that it found."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from leeward.agent.types import GuestSpec, GuestStatus, MigrationLimits, MigrationProgress
from leeward.clock import Clock
from leeward_agent.hypervisors.libvirt import migrate
from leeward_agent.hypervisors.libvirt.connection import LibvirtConnections, VirConnect
from leeward_agent.hypervisors.libvirt.domain_xml import metadata_of
from leeward_agent.hypervisors.libvirt.events import EventHub
from leeward_agent.hypervisors.libvirt.migration import OUTCOME_TIMEOUT_S, MigrationCalls, MigrationRun, Stats
from leeward_agent.hypervisors.libvirt.status import PostCopy, find, job_stats, post_copy
from leeward_agent.ports import FolderMove, Transport

_T = TypeVar("_T")

_QUERY_DEADLINE_S = 10.0
# libvirt itself gives up waiting for a guest's job lock after 30 s.
_ACTION_DEADLINE_S = 35.0
_JOB_EVENT_TIMEOUT_S = 3.0


class LibvirtMigrations:
    """Begins, follows and cancels them. `jobs` answers questions, `urgent` takes what must not wait behind a guest."""

    def __init__(
        self,
        uri: str,
        *,
        clock: Clock,
        events: EventHub,
        jobs: LibvirtConnections,
        urgent: LibvirtConnections,
        status: Callable[[str], Awaitable[GuestStatus]],
    ) -> None:
        self._uri = uri
        self._clock = clock
        self._events = events
        self._jobs = jobs
        self._urgent = urgent
        self._status = status
        self._runs: dict[str, MigrationRun] = {}

    def running(self, uid: str) -> bool:
        """Whether one of this guest is under way as far as this driver knows."""
        run = self._runs.get(uid)
        return run is not None and run.running

    def begin(
        self,
        spec: GuestSpec,
        *,
        destination: str,
        transport: Transport,
        folders: FolderMove,
        limits: MigrationLimits,
    ) -> AsyncIterator[MigrationProgress]:
        """As `Hypervisor.migrate`."""
        run = self._runs.get(spec.uid)
        if run is None or not run.running:
            run = self._new_run(spec.uid, limits)
            run.start(partial(self._perform, spec, destination, transport, folders, limits))
        return run.reports()

    def follow(self, uid: str, *, limits: MigrationLimits) -> AsyncIterator[MigrationProgress]:
        """As `Hypervisor.follow_migration`."""
        run = self._runs.get(uid)
        if run is None or not run.running:
            run = self._new_run(uid, limits)
            run.join()
        return run.reports()

    async def cancel(self, uid: str) -> None:
        """As `Hypervisor.cancel_migration`."""
        run = self._runs.get(uid)
        if run is not None and run.running:
            run.cancel()
        await self._abort(uid)

    async def is_split(self, uid: str) -> bool:
        """As `Hypervisor.is_split`."""
        return await self._post_copy(uid) is PostCopy.BROKEN

    def detach(self) -> None:
        """Stop following all of them; libvirtd carries them through."""
        for run in self._runs.values():
            run.detach()

    def _new_run(self, uid: str, limits: MigrationLimits) -> MigrationRun:
        calls = MigrationCalls(
            status=partial(self._status, uid),
            stats=partial(self._stats, uid),
            abort=partial(self._abort, uid),
            start_post_copy=partial(self._act, uid, "switch to post-copy", migrate.start_post_copy),
            halt=partial(self._act, uid, "halt", migrate.halt),
            post_copy=partial(self._post_copy, uid),
            final_stats=partial(self._events.take_job, uid, timeout_s=_JOB_EVENT_TIMEOUT_S),
        )
        for ended in [each for each, run in self._runs.items() if not run.running]:
            del self._runs[ended]
            self._events.forget_job(ended)
        self._events.await_job(uid)
        run = MigrationRun(uid, calls, clock=self._clock, limits=limits)
        self._runs[uid] = run
        return run

    async def _perform(
        self,
        spec: GuestSpec,
        destination: str,
        transport: Transport,
        folders: FolderMove,
        limits: MigrationLimits,
    ) -> None:
        what = f"migrate guest {spec.uid} to {destination}"
        to = migrate.destination_of(transport)
        await self._events.connected(timeout_s=_QUERY_DEADLINE_S)
        connection = LibvirtConnections(self._uri, name=f"migration-{spec.uid}")
        perform = partial(migrate.perform, metadata=metadata_of(spec), to=to, folders=folders, limits=limits)
        try:
            await connection.call(what, perform, deadline_s=limits.timeout_s + OUTCOME_TIMEOUT_S)
        finally:
            connection.close()

    async def _stats(self, uid: str) -> Stats | None:
        def read(connection: VirConnect) -> Stats | None:
            domain = find(connection, uid)
            return job_stats(domain) if domain is not None else None

        return await self._ask(uid, read)

    async def _post_copy(self, uid: str) -> PostCopy:
        return await self._ask(uid, lambda connection: post_copy(connection, uid))

    async def _ask(self, uid: str, question: Callable[[VirConnect], _T]) -> _T:
        return await self._jobs.call(f"follow the migration of guest {uid}", question, deadline_s=_QUERY_DEADLINE_S)

    async def _abort(self, uid: str) -> None:
        await self._act(uid, "cancel", migrate.abort)

    async def _act(self, uid: str, what: str, action: Callable[[VirConnect, str], None]) -> None:
        await self._urgent.call(
            f"{what} the migration of guest {uid}", lambda it: action(it, uid), deadline_s=_ACTION_DEADLINE_S
        )
