"""The agent: `AgentApi` over a hypervisor and pools.

Every mutating call observes, acts on what is missing, and verifies.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import leeward
from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestSpec,
    GuestState,
    GuestStatus,
    ImageFile,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    RebootMode,
    SlotObservation,
)
from leeward.clock import Clock
from leeward.errors import FailedPrecondition, HypervisorError, InvalidArgument, NotFound, StaleRunEpoch, WrongState
from leeward_agent import console
from leeward_agent.domain.checks import check_spec
from leeward_agent.domain.right import check_right
from leeward_agent.guest_events import GuestEvents
from leeward_agent.migration import MigrationRequest, Migrations
from leeward_agent.ports import Claims, Hypervisor, Routes, Vitals
from leeward_agent.power import Power, in_memory
from leeward_agent.reconcile import Quarantine, Reconciler
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.port import Pool, RunEpochRecord
from leeward_agent.turns import Turn, Turns


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What the agent says of itself and is configured with."""

    node: str
    boot_id: str
    agent_id: str
    address: str
    lease_ttl_s: float
    guard_delay_s: float
    console_directory: Path
    labels: dict[str, str] = field(default_factory=dict)
    vcpus: int = 0  # Instead of what the hypervisor says; 0: what it says.
    memory_mib: int = 0  # Likewise.


class Agent:
    """One host's agent; the port `leeward.agent.api.AgentApi` says what each method promises.

    `run_events` must be running for watches.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        *,
        hypervisor: Hypervisor,
        pools: Sequence[Pool],
        claims: Claims,
        vitals: Vitals,
        routes: Routes,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._hypervisor = hypervisor
        self._pools = {pool.pool_id: pool for pool in pools}
        self._vitals = vitals
        self._events = GuestEvents(hypervisor, clock=clock)
        self._power = Power(hypervisor, clock=clock)
        self._turns = Turns(claims)
        self._migrations = Migrations(hypervisor, self._power, routes, clock=clock)
        self._clock = clock
        self._draining = False

    def reconciler(self, quarantine: Quarantine, *, interval_s: float) -> Reconciler:
        """What keeps this host's guests as they should be, taking its turns with the callers of this agent."""
        return Reconciler(
            node=self._identity.node,
            hypervisor=self._hypervisor,
            pools=tuple(self._pools.values()),
            power=self._power,
            turns=self._turns,
            quarantine=quarantine,
            clock=self._clock,
            interval_s=interval_s,
        )

    async def run_events(self) -> None:
        """Follow the hypervisor's events until cancelled."""
        await self._events.run()

    async def drain(self, timeout_s: float) -> None:
        """Take no more mutating calls, and wait for those under way; guests run on."""
        self._draining = True
        await self._turns.drain(timeout_s)
        await self._migrations.drain(timeout_s)

    async def describe_node(self) -> NodeReport:
        identity = self._identity
        capacity = await self._hypervisor.capacity()
        return NodeReport(
            node=identity.node,
            boot_id=identity.boot_id,
            agent_id=identity.agent_id,
            address=identity.address,
            vcpus=identity.vcpus or capacity.vcpus,
            memory_mib=identity.memory_mib or capacity.memory_mib,
            pools=tuple([await pool.report() for pool in self._pools.values()]),
            hypervisor=capacity.hypervisor,
            hypervisor_version=capacity.hypervisor_version,
            agent_version=leeward.__version__,
            guard_armed=self._vitals.guard_armed,
            lease_ttl_s=identity.lease_ttl_s,
            guard_delay_s=identity.guard_delay_s,
            labels=identity.labels,
            draining=self._draining,
        )

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        return await self._hypervisor.list_guests()

    async def get_guest(self, *, uid: str) -> GuestStatus:
        return await self._hypervisor.get_guest(checked_uid(uid))

    async def watch_guests(self) -> AsyncGenerator[GuestStatus, None]:
        async with aclosing(self._events.watch()) as changes:
            async for change in changes:
                yield change

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        return await self._vitals.observe_slots()

    async def store_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        return await self._pool(pool_id).store_image(digest=digest, format=format, size_bytes=size_bytes, chunks=chunks)

    async def read_image(self, *, pool_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        if offset < 0:
            raise InvalidArgument.field("offset", "must not be negative")
        async for chunk in self._pool(pool_id).read_image(digest=digest, offset=offset):
            yield chunk

    async def delete_image(self, *, pool_id: str, digest: str) -> None:
        await self._pool(pool_id).delete_image(digest=digest)

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)
        await self._turns.run(spec.uid, caller, lambda _: pool.create_disk(spec))

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def claim(_: Turn) -> None:
            await pool.write_run_epoch(spec.uid, RunEpochRecord(epoch=spec.run_epoch, node=self._identity.node))
            # A guest that has just arrived by migration still carries the epoch by which it ran at its source.
            await self._hypervisor.set_run_epoch(spec.uid, spec.run_epoch)

        await self._turns.run(spec.uid, caller, claim)

    async def start_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        check_spec(spec)
        pool = self._pool(spec.pool_id)
        return await self._turns.run(spec.uid, caller, lambda turn: self._start(turn, spec, pool))

    async def stop_guest(self, caller: Caller, *, uid: str, grace_period_s: float) -> GuestStatus:
        async def stop(turn: Turn) -> GuestStatus:
            await self._migrations.abandon(uid)
            return await self._power.stop(uid, grace_period_s=grace_period_s, check=turn.check)

        return await self._turns.run(checked_uid(uid), caller, stop)

    async def reboot_guest(self, caller: Caller, *, uid: str, mode: RebootMode, timeout_s: float) -> RebootMode:
        async def reboot(turn: Turn) -> RebootMode:
            return await self._power.reboot(uid, mode, timeout_s=timeout_s, check=turn.check)

        return await self._turns.run(checked_uid(uid), caller, reboot)

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        return await self._turns.run(checked_uid(uid), caller, lambda _: self._resume(uid))

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        async def remove(_: Turn) -> None:
            await self._migrations.abandon(uid)
            await self._power.forget(uid)

        await self._turns.run(checked_uid(uid), caller, remove)

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def delete(_: Turn) -> None:
            status = await self._hypervisor.get_guest(spec.uid)
            if in_memory(status):
                raise FailedPrecondition(f"guest {spec.uid} is {status.state} on {self._identity.node}: stop it first")
            record = await pool.read_run_epoch(spec.uid)
            if record is not None and record.epoch > spec.run_epoch:
                raise StaleRunEpoch(
                    f"the disk of guest {spec.uid} belongs to epoch {record.epoch} by now, not {spec.run_epoch}",
                    metadata={"epoch": str(record.epoch), "node": record.node},
                )
            await pool.delete_disk(spec.uid)
            await console.remove(self._identity.console_directory, spec.uid)

        await self._turns.run(spec.uid, caller, delete)

    async def migrate_guest(
        self, caller: Caller, *, spec: GuestSpec, destination: MigrationDestination, limits: MigrationLimits
    ) -> AsyncGenerator[MigrationProgress, None]:
        check_spec(spec)
        if destination.node == self._identity.node:
            raise FailedPrecondition(f"guest {spec.uid} cannot migrate to the node it is on")
        request = MigrationRequest(caller.operation, spec, destination, limits)
        # The turn ends when the migration has begun: cancelling and stopping must be possible while it lasts.
        job = await self._turns.run(spec.uid, caller, lambda _: self._migrations.begin(request))
        async with aclosing(job.follow()) as progress:
            async for moment in progress:
                yield moment

    async def cancel_migration(self, caller: Caller, *, uid: str) -> None:
        await self._turns.run(checked_uid(uid), caller, lambda _: self._migrations.cancel(uid))

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        return await console.read(self._identity.console_directory, uid, offset=offset, limit_bytes=limit_bytes)

    async def _start(self, turn: Turn, spec: GuestSpec, pool: Pool) -> GuestStatus:
        node = self._identity.node
        if not await pool.has_disk(spec.uid):
            raise NotFound(f"guest {spec.uid} has no disk in pool {spec.pool_id}", resource=spec.uid)
        check_right(spec, await pool.read_run_epoch(spec.uid), node=node)
        status = await self._hypervisor.get_guest(spec.uid)
        if in_memory(status):
            if status.migrating:
                raise WrongState(f"guest {spec.uid} is {status.state} on {node} as one end of a migration")
            await self._hypervisor.set_run_epoch(spec.uid, spec.run_epoch)
            return await self._hypervisor.get_guest(spec.uid)
        if not self._vitals.may_start_guests(spec.pool_id):
            raise FailedPrecondition(
                f"{node} may not start guests in pool {spec.pool_id}: it could renew neither of its heartbeats in time",
                reason="NODE_NOT_LEGITIMATE",
            )
        # Whatever took time above, the record decides, so it is read once more, last.
        turn.check()
        check_right(spec, await pool.read_run_epoch(spec.uid), node=node)
        log = console.log_path(self._identity.console_directory, spec.uid)
        await self._hypervisor.start(spec, disk=pool.disk_path(spec.uid), console_log=log)
        return await self._started(spec, pool)

    async def _started(self, spec: GuestSpec, pool: Pool) -> GuestStatus:
        """The guest just started; killed again when the right has moved in the moment of starting."""
        try:
            check_right(spec, await pool.read_run_epoch(spec.uid), node=self._identity.node)
        except StaleRunEpoch:
            await self._power.kill(spec.uid)
            raise
        status = await self._hypervisor.get_guest(spec.uid)
        if not in_memory(status):
            raise HypervisorError(f"guest {spec.uid} was started but is {status.state} ({status.stop_cause})")
        return status

    async def _resume(self, uid: str) -> GuestStatus:
        status = await self._hypervisor.get_guest(uid)
        if status.state is GuestState.RUNNING:
            return status
        if status.state is not GuestState.PAUSED or status.migrating:
            raise WrongState(f"guest {uid} cannot be resumed: it is {status.state} on {self._identity.node}")
        await self._hypervisor.resume(uid)
        status = await self._hypervisor.get_guest(uid)
        if status.state is not GuestState.RUNNING:
            raise HypervisorError(f"guest {uid} was resumed but is {status.state}")
        return status

    def _pool(self, pool_id: str) -> Pool:
        pool = self._pools.get(pool_id)
        if pool is None:
            raise NotFound(f"{self._identity.node} has no pool {pool_id!r}", resource=pool_id)
        return pool
