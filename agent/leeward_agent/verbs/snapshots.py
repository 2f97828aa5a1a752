"""Images made of guests' disks, running or not."""

from leeward.agent.types import Caller, GuestSpec, SnapshotFile
from leeward.errors import NotFound
from leeward_agent.domain.checks import check_spec
from leeward_agent.power import in_memory
from leeward_agent.storage.port import Pool
from leeward_agent.turns import Turn
from leeward_agent.verbs.base import Verbs


class SnapshotVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def snapshot_disk(self, caller: Caller, *, spec: GuestSpec) -> SnapshotFile:
        check_spec(spec)
        pool = self._pool(spec.pool_id)
        return await self._turns.run(
            spec.uid, caller, lambda turn: self._snapshot(turn, spec, pool), ends_with_caller=True
        )

    async def _snapshot(self, turn: Turn, spec: GuestSpec, pool: Pool) -> SnapshotFile:
        operation = turn.caller.operation
        known = await pool.known_snapshot(spec.uid, operation=operation)
        if known is not None:
            return known
        if not await pool.has_disk(spec.uid):
            raise NotFound(f"guest {spec.uid} has no disk in pool {spec.pool_id}", resource=spec.uid)
        await self._refuse_outdated(spec, pool)
        status = await self._hypervisor.get_guest(spec.uid)
        if not in_memory(status):
            return await turn.unless_over(pool.snapshot_disk(spec.uid, operation=operation))
        if status.migrating:
            raise self._wrong_state(status, "copied")
        return await turn.unless_over(self._copy_running(spec, pool, operation))

    async def _copy_running(self, spec: GuestSpec, pool: Pool, operation: str) -> SnapshotFile:
        file = await pool.new_snapshot(spec.uid)
        kept = False
        try:
            quiesced = await self._hypervisor.backup(spec, disks=pool.disks(spec), to=file)
            snapshot = await pool.keep_snapshot(spec.uid, operation=operation, quiesced=quiesced)
            kept = True
            return snapshot
        finally:
            if not kept:
                await pool.drop_snapshot(spec.uid)
