"""The disks of guests that have no process here."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from leeward.agent.types import Caller, DiskFormat, GuestSpec, ImageFile, PoolSource
from leeward.errors import FailedPrecondition, InvalidArgument
from leeward_agent.domain.checks import check_spec
from leeward_agent.power import in_memory
from leeward_agent.storage.names import checked_uid
from leeward_agent.turns import Turn
from leeward_agent.verbs.base import Verbs


class DiskVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def fetch_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, source: PoolSource
    ) -> ImageFile:
        pool = self._pool(pool_id)
        async with self._peers.connect(source) as peer:
            return await pool.fetch_image(
                digest=digest,
                format=format,
                size_bytes=size_bytes,
                read=lambda offset: peer.read_image(pool_id=source.pool_id, digest=digest, offset=offset),
            )

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def create(_: Turn) -> None:
            # What an agent was asked before it stood still may have been taken back since, through another host.
            self._require_vouched(spec.pool_id, "make disks")
            await pool.create_disk(spec)

        await self._turns.run(spec.uid, caller, create)

    async def drop_rescue_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        file = pool.rescue_path(spec.uid).name

        async def drop(_: Turn) -> None:
            status = await self._hypervisor.get_guest(spec.uid)
            # A guest that has left its rescue already runs from its own disk, and does not know that one.
            if in_memory(status) and f"{spec.uid}/{file}" in await self._hypervisor.definition(spec.uid):
                raise FailedPrecondition(f"guest {spec.uid} runs its rescue image on {self._node}: stop it first")
            await self._refuse_outdated(spec, pool)
            await pool.drop_rescue_disk(spec.uid)

        await self._turns.run(spec.uid, caller, drop)

    async def replace_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        pool = self._pool(spec.pool_id)
        await self._on_stopped(caller, spec, lambda: pool.replace_disk(spec, operation=caller.operation))

    async def resize_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        pool = self._pool(spec.pool_id)
        await self._on_stopped(caller, spec, lambda: pool.resize_disk(spec, operation=caller.operation))

    async def confirm_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def confirm(_: Turn) -> None:
            # Also while it runs: what is deleted is not what it runs from.
            await self._refuse_outdated(spec, pool)
            await pool.confirm_disk(spec.uid)

        await self._turns.run(spec.uid, caller, confirm)

    async def revert_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        pool = self._pool(spec.pool_id)
        await self._on_stopped(caller, spec, lambda: pool.revert_disk(spec.uid))

    async def pull_disk(self, caller: Caller, *, spec: GuestSpec, source: PoolSource) -> None:
        pool = self._pool(spec.pool_id)

        async def pull() -> None:
            async with self._peers.connect(source) as peer:
                await pool.pull_disk(
                    spec,
                    operation=caller.operation,
                    read=lambda file, offset: peer.read_disk(
                        pool_id=source.pool_id, uid=spec.uid, file=file, offset=offset
                    ),
                )

        await self._on_stopped(caller, spec, pull)

    async def read_disk(self, *, pool_id: str, uid: str, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        if offset < 0:
            raise InvalidArgument.field("offset", "must not be negative")
        pool = self._pool(pool_id)
        await self._refuse_in_memory(checked_uid(uid))
        async with aclosing(pool.read_disk(uid, file=file, offset=offset)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        pool = self._pool(spec.pool_id)

        async def delete() -> None:
            await pool.delete_disk(spec.uid)
            await self._consoles.remove_socket(spec.uid)

        await self._on_stopped(caller, spec, delete)

    async def _on_stopped(self, caller: Caller, spec: GuestSpec, work: Callable[[], Awaitable[None]]) -> None:
        """Work on the disks of a guest that has no process here and has not moved on; given up with its caller."""
        check_spec(spec)
        pool = self._pool(spec.pool_id)

        async def act(turn: Turn) -> None:
            await self._refuse_in_memory(spec.uid)
            await self._refuse_outdated(spec, pool)
            await turn.unless_over(_awaited(work))

        await self._turns.run(spec.uid, caller, act, ends_with_caller=True)


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()
