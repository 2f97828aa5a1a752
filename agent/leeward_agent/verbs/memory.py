"""A guest's memory in a file: suspended, and woken on any host with the pool."""

from leeward.agent.types import Caller, GuestSpec, GuestState, GuestStatus
from leeward.errors import HypervisorError, LeewardError, NotFound
from leeward_agent.domain.checks import check_spec
from leeward_agent.domain.right import check_right
from leeward_agent.power import in_memory
from leeward_agent.storage.port import Pool
from leeward_agent.turns import Turn
from leeward_agent.verbs.guests import GuestVerbs


class MemoryVerbs(GuestVerbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def suspend_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        check_spec(spec)
        pool = self._pool(spec.pool_id)
        return await self._turns.run(
            spec.uid, caller, lambda turn: self._suspend(turn, spec, pool), ends_with_caller=True
        )

    async def wake_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        check_spec(spec)
        pool = self._pool(spec.pool_id)
        return await self._turns.run(spec.uid, caller, lambda turn: self._wake(turn, spec, pool), ends_with_caller=True)

    async def discard_memory(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def discard(_: Turn) -> None:
            await self._refuse_outdated(spec, pool)
            await pool.discard_memory(spec.uid)

        await self._turns.run(spec.uid, caller, discard)

    async def _suspend(self, turn: Turn, spec: GuestSpec, pool: Pool) -> GuestStatus:
        await self._refuse_outdated(spec, pool)
        status = await self._hypervisor.get_guest(spec.uid)
        if in_memory(status):
            if status.migrating:
                raise self._wrong_state(status, "suspended")
            await self._save(turn, spec, pool)
        elif not await pool.has_memory(spec.uid) and not await self._complete_suspend(status, pool):
            raise self._wrong_state(status, "suspended")
        return await self._hypervisor.get_guest(spec.uid)

    async def _save(self, turn: Turn, spec: GuestSpec, pool: Pool) -> None:
        """Write its memory and end it. When that fails or is given up, what there is of a file is kept or dropped, by
        whether the guest has ended.
        """
        file = await pool.new_memory(spec.uid)
        try:
            await turn.unless_over(self._hypervisor.suspend(spec, to=file))
        except LeewardError:
            if in_memory(await self._hypervisor.get_guest(spec.uid)):
                await pool.discard_memory(spec.uid)
            else:
                await pool.keep_memory(spec.uid)
            raise
        await pool.keep_memory(spec.uid)

    async def _complete_suspend(self, status: GuestStatus, pool: Pool) -> bool:
        """Whoever suspended it may have ended, or given up, when the guest was written and the file had no name yet."""
        return status.state is GuestState.STOPPED and await pool.keep_memory(status.uid)

    async def _wake(self, turn: Turn, spec: GuestSpec, pool: Pool) -> GuestStatus:
        check_right(spec, await pool.read_run_epoch(spec.uid), node=self._node)
        status = await self._hypervisor.get_guest(spec.uid)
        if status.state is GuestState.PAUSED and await pool.has_memory(spec.uid):
            # An earlier life of this agent was bringing it back, and it is not known how far that is.
            status = await self._power.kill(spec.uid)
        if not in_memory(status):
            await self._restore(turn, spec, pool, status)
        elif status.migrating:
            raise self._wrong_state(status, "woken")
        else:
            await self._hypervisor.set_run_epoch(spec.uid, spec.run_epoch)
        # Before it executes anything: from then on its disk changes, and that memory fits it no more.
        await pool.discard_memory(spec.uid)
        return await self._resume(spec.uid)

    async def _restore(self, turn: Turn, spec: GuestSpec, pool: Pool, status: GuestStatus) -> None:
        """Have it in memory, not executing."""
        if not await pool.has_memory(spec.uid) and not await self._complete_suspend(status, pool):
            raise NotFound(f"guest {spec.uid} has no memory file in pool {spec.pool_id}", resource=spec.uid)
        await self._check_may_run(turn, spec, pool)
        waking = self._hypervisor.wake(
            spec, memory=pool.memory_path(spec.uid), disks=pool.disks(spec), console=self._consoles.files(spec.uid)
        )
        await turn.unless_over(waking)
        status = await self._started(spec, pool)
        if status.state is not GuestState.PAUSED:
            await self._power.kill(spec.uid)
            raise HypervisorError(f"guest {spec.uid} was brought back but is {status.state}")
