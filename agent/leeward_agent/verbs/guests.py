"""Guests and their processes: the right to run them, starting, stopping, halting."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from leeward.agent.types import (
    Caller,
    GuestProbe,
    GuestSpec,
    GuestState,
    GuestStatus,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    RebootMode,
)
from leeward.errors import FailedPrecondition, HypervisorError, NotFound, StaleRunEpoch, Unavailable, WrongState
from leeward_agent.domain.checks import check_spec
from leeward_agent.domain.right import check_right
from leeward_agent.migration_job import MigrationRequest
from leeward_agent.power import in_memory
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.port import Pool, RunEpochRecord
from leeward_agent.turns import Turn
from leeward_agent.verbs.base import Verbs


class GuestVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        return await self._hypervisor.list_guests()

    async def get_guest(self, *, uid: str) -> GuestStatus:
        return await self._hypervisor.get_guest(checked_uid(uid))

    async def watch_guests(self) -> AsyncGenerator[GuestStatus, None]:
        async with aclosing(self._events.watch()) as changes:
            async for change in changes:
                yield change

    async def probe_guest(self, *, uid: str, probe: GuestProbe) -> str:
        status = await self._hypervisor.get_guest(checked_uid(uid))
        if status.state is not GuestState.RUNNING:
            return f"it is {status.state} on {self._node}"
        return await self._hypervisor.probe(uid, probe)

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def claim(_: Turn) -> None:
            await pool.write_run_epoch(spec.uid, RunEpochRecord(epoch=spec.run_epoch, node=self._node))
            # A guest that has just arrived by migration still carries the epoch by which it ran at its source.
            await self._hypervisor.set_run_epoch(spec.uid, spec.run_epoch)

        await self._turns.run(spec.uid, caller, claim)

    async def start_guest(self, caller: Caller, *, spec: GuestSpec, paused: bool = False) -> GuestStatus:
        check_spec(spec)
        pool = self._pool(spec.pool_id)
        return await self._turns.run(spec.uid, caller, lambda turn: self._start(turn, spec, pool, paused=paused))

    async def stop_guest(self, caller: Caller, *, uid: str, grace_period_s: float) -> GuestStatus:
        async def stop(turn: Turn) -> GuestStatus:
            await self._migrations.abandon(uid)
            return await self._power.stop(uid, grace_period_s=grace_period_s, check=turn.check)

        return await self._turns.run(checked_uid(uid), caller, stop)

    async def reboot_guest(self, caller: Caller, *, uid: str, mode: RebootMode, timeout_s: float) -> RebootMode:
        async def reboot(turn: Turn) -> RebootMode:
            return await self._power.reboot(uid, mode, timeout_s=timeout_s, check=turn.check)

        return await self._turns.run(checked_uid(uid), caller, reboot)

    async def pause_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        return await self._turns.run(checked_uid(uid), caller, lambda _: self._pause(uid))

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        return await self._turns.run(checked_uid(uid), caller, lambda _: self._resume(uid))

    async def inject_nmi(self, caller: Caller, *, uid: str) -> None:
        async def inject(_: Turn) -> None:
            status = await self._hypervisor.get_guest(uid)
            if status.state is not GuestState.RUNNING:
                raise self._wrong_state(status, "interrupted")
            await self._hypervisor.inject_nmi(uid)

        await self._turns.run(checked_uid(uid), caller, inject)

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        async def remove(_: Turn) -> None:
            await self._migrations.abandon(uid)
            await self._power.forget(uid)
            await self._consoles.remove_socket(uid)

        await self._turns.run(checked_uid(uid), caller, remove)

    async def migrate_guest(
        self, caller: Caller, *, spec: GuestSpec, destination: MigrationDestination, limits: MigrationLimits
    ) -> AsyncGenerator[MigrationProgress, None]:
        check_spec(spec)
        if destination.node == self._node:
            raise FailedPrecondition(f"guest {spec.uid} cannot migrate to the node it is on")
        request = MigrationRequest(caller.operation, spec, destination, limits)
        # The turn ends when the migration has begun: cancelling and stopping must be possible while it lasts.
        job = await self._turns.run(spec.uid, caller, lambda _: self._migrations.begin(request))
        async with aclosing(job.follow()) as progress:
            async for moment in progress:
                yield moment

    async def cancel_migration(self, caller: Caller, *, uid: str) -> None:
        await self._turns.run(checked_uid(uid), caller, lambda _: self._migrations.cancel(uid))

    async def _start(self, turn: Turn, spec: GuestSpec, pool: Pool, *, paused: bool) -> GuestStatus:
        if not await pool.has_disk(spec.uid):
            raise NotFound(f"guest {spec.uid} has no disk in pool {spec.pool_id}", resource=spec.uid)
        check_right(spec, await pool.read_run_epoch(spec.uid), node=self._node)
        status = await self._hypervisor.get_guest(spec.uid)
        if in_memory(status):
            if status.migrating:
                raise WrongState(f"guest {spec.uid} is {status.state} on {self._node} as one end of a migration")
            await self._hypervisor.set_run_epoch(spec.uid, spec.run_epoch)
            return await self._hypervisor.get_guest(spec.uid)
        if await pool.has_memory(spec.uid):
            # Once it has written to its disk again, that memory fits it no more.
            raise WrongState(f"guest {spec.uid} is suspended: wake it, or discard its memory first")
        await pool.discard_memory(spec.uid)  # Neither does one that never got its name.
        await self._check_may_run(turn, spec, pool)
        await self._hypervisor.start(
            spec, disks=pool.disks(spec), console=self._consoles.files(spec.uid), paused=paused
        )
        return await self._started(spec, pool)

    async def _check_may_run(self, turn: Turn, spec: GuestSpec, pool: Pool) -> None:
        """The last look before a process of the guest comes into being. Raises Unavailable, StaleRunEpoch."""
        self._require_vouched(spec.pool_id, "start guests")
        # Whatever took time before, the record decides, so it is read once more, last.
        turn.check()
        check_right(spec, await pool.read_run_epoch(spec.uid), node=self._node)

    async def _started(self, spec: GuestSpec, pool: Pool) -> GuestStatus:
        """The guest just started; killed again when the right has moved in the moment of starting."""
        try:
            check_right(spec, await pool.read_run_epoch(spec.uid), node=self._node)
        except StaleRunEpoch:
            await self._power.kill(spec.uid)
            raise
        status = await self._hypervisor.get_guest(spec.uid)
        if not in_memory(status):
            raise HypervisorError(f"guest {spec.uid} was started but is {status.state} ({status.stop_cause})")
        return status

    async def _pause(self, uid: str) -> GuestStatus:
        status = await self._hypervisor.get_guest(uid)
        if not in_memory(status) or status.migrating:
            raise self._wrong_state(status, "paused")
        if status.state is GuestState.PAUSED:
            if uid in await self._hypervisor.paused_by_io_error():
                # It would be let run on as soon as its disk can be reached again.
                why = "it stands still already, because its disk cannot be reached"
                raise Unavailable(f"guest {uid} cannot be paused now: {why}", reason="DISK_UNREACHABLE")
            return status
        await self._hypervisor.pause(uid)
        status = await self._hypervisor.get_guest(uid)
        if status.state is not GuestState.PAUSED:
            raise HypervisorError(f"guest {uid} was paused but is {status.state}")
        return status

    async def _resume(self, uid: str) -> GuestStatus:
        status = await self._hypervisor.get_guest(uid)
        if status.state is GuestState.RUNNING:
            return status
        if status.state is not GuestState.PAUSED or status.migrating:
            raise self._wrong_state(status, "resumed")
        await self._hypervisor.resume(uid)
        status = await self._hypervisor.get_guest(uid)
        if status.state is not GuestState.RUNNING:
            raise HypervisorError(f"guest {uid} was resumed but is {status.state}")
        return status
