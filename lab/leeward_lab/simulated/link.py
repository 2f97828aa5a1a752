"""A controller's calls to a simulated agent, and a node's calls to the store, over a network that may be cut.

A call that finds the link cut never arrives; one whose link is cut, or whose host dies, while it is under way has an
unknown end: the other side may go on with it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from contextvars import Context, copy_context
from typing import Any, TypeVar

from leeward.agent.api import AgentApi
from leeward.agent.types import (
    Caller,
    ConsoleChunk,
    DiskFormat,
    GuestProbe,
    GuestSpec,
    GuestStatus,
    ImageFile,
    Inventory,
    MigrationDestination,
    MigrationLimits,
    MigrationProgress,
    NodeReport,
    PoolSource,
    RebootMode,
    SlotObservation,
    SnapshotFile,
)
from leeward.errors import AgentIndefinite, AgentUnavailable
from leeward_lab.virtual_time import is_frozen, process

T = TypeVar("T")

CallHook = Callable[[str, str], Awaitable[None]]

Repeats = Callable[[str, str], float | None]
"""Of a call to a node: after how many seconds it arrives there once more, by itself; None: it does not."""


async def no_hook(_target: str, _method: str) -> None:
    """Nothing happens around a call."""


def no_repeats(_target: str, _method: str) -> float | None:
    """Every call arrives once."""
    return None


class LinkedAgent:
    """An `AgentApi` whose calls go over a link.

    `find` gives the agent that answers now, or None; `broken` is awaited beside each call and completes when the link
    breaks. `hook(node, method)` runs before a call leaves and after its answer is back. `repeats` tells of calls that
    arrive a second time, as a network may have it. The agent works in `context`, that of its process, which may be
    stopped.
    """

    def __init__(
        self,
        node: str,
        *,
        find: Callable[[], AgentApi | None],
        broken: Callable[[], Awaitable[None]],
        hook: CallHook = no_hook,
        repeats: Repeats = no_repeats,
        context: Callable[[], Context] = copy_context,
    ) -> None:
        self._node = node
        self._find = find
        self._broken = broken
        self._hook = hook
        self._repeats = repeats
        self._context = context
        self._apart: set[asyncio.Task[Any]] = set()  # What nobody here waits for any more.

    async def _call(self, method: str, act: Callable[[AgentApi], Awaitable[T]]) -> T:
        await self._hook(self._node, f"before {method}")
        agent = self._find()
        if agent is None:
            raise AgentUnavailable(f"nodes/{self._node} cannot be reached")
        after_s = self._repeats(self._node, method)
        if after_s is not None:
            self._set_apart(self._at_agent(self._repeat(after_s, act)))
        result = await self._race(agent, act)
        await self._hook(self._node, f"after {method}")
        return result

    def _at_agent(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(work, context=self._context())

    def _set_apart(self, task: asyncio.Task[Any]) -> None:
        self._apart.add(task)
        task.add_done_callback(self._was_apart)

    def _was_apart(self, task: asyncio.Task[Any]) -> None:
        self._apart.discard(task)
        if not task.cancelled():
            task.exception()  # Nobody hears of it.

    async def _repeat(self, after_s: float, act: Callable[[AgentApi], Awaitable[Any]]) -> None:
        await asyncio.sleep(after_s)
        agent = self._find()
        if agent is not None:
            await act(agent)

    async def _race(self, agent: AgentApi, act: Callable[[AgentApi], Awaitable[T]]) -> T:
        call = self._at_agent(_act_on(agent, act))
        broken = asyncio.ensure_future(_as_coroutine(self._broken()))
        both: set[asyncio.Future[Any]] = {call, broken}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
        finally:
            broken.cancel()
            call.cancel()
            if self._is_stopped():
                # It learns of its caller's going when it goes on.
                self._set_apart(call)
            else:
                await asyncio.gather(*both, return_exceptions=True)
        raise AgentIndefinite(f"nodes/{self._node} was lost in mid-call")

    async def _stream(
        self, method: str, open_: Callable[[AgentApi], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        await self._hook(self._node, f"before {method}")
        agent = self._find()
        if agent is None:
            raise AgentUnavailable(f"nodes/{self._node} cannot be reached")
        after_s = self._repeats(self._node, method)
        if after_s is not None:
            self._set_apart(self._at_agent(self._repeat(after_s, lambda again: _read_out(open_(again)))))
        stream = open_(agent)
        try:
            while True:
                try:
                    item = await self._race(agent, lambda _: anext(stream))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if self._is_stopped():
                self._set_apart(self._at_agent(self._close(stream, after=frozenset(self._apart))))
            else:
                await self._close(stream, after=frozenset(self._apart))

    async def _close(self, stream: AsyncGenerator[Any, None], *, after: frozenset[asyncio.Task[Any]]) -> None:
        if after:
            await asyncio.wait(after)
        await stream.aclose()

    def _is_stopped(self) -> bool:
        return is_frozen(self._context().get(process, ""))

    async def describe_node(self) -> NodeReport:
        return await self._call("describe_node", lambda agent: agent.describe_node())

    async def list_guests(self) -> tuple[GuestStatus, ...]:
        return await self._call("list_guests", lambda agent: agent.list_guests())

    async def get_guest(self, *, uid: str) -> GuestStatus:
        return await self._call("get_guest", lambda agent: agent.get_guest(uid=uid))

    def watch_guests(self) -> AsyncGenerator[GuestStatus, None]:
        return self._stream("watch_guests", lambda agent: agent.watch_guests())

    async def observe_slots(self) -> tuple[SlotObservation, ...]:
        return await self._call("observe_slots", lambda agent: agent.observe_slots())

    async def leave_pill(self, *, node: str, boot_id: str, pill_id: str) -> None:
        await self._call("leave_pill", lambda agent: agent.leave_pill(node=node, boot_id=boot_id, pill_id=pill_id))

    async def withdraw_pill(self, *, pill_id: str) -> None:
        await self._call("withdraw_pill", lambda agent: agent.withdraw_pill(pill_id=pill_id))

    async def store_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        return await self._call(
            "store_image",
            lambda agent: agent.store_image(
                pool_id=pool_id, digest=digest, format=format, size_bytes=size_bytes, chunks=chunks
            ),
        )

    def read_image(self, *, pool_id: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        return self._stream("read_image", lambda agent: agent.read_image(pool_id=pool_id, digest=digest, offset=offset))

    async def delete_image(self, *, pool_id: str, digest: str) -> None:
        await self._call("delete_image", lambda agent: agent.delete_image(pool_id=pool_id, digest=digest))

    async def fetch_image(
        self, *, pool_id: str, digest: str, format: DiskFormat, size_bytes: int, source: PoolSource
    ) -> ImageFile:
        return await self._call(
            "fetch_image",
            lambda agent: agent.fetch_image(
                pool_id=pool_id, digest=digest, format=format, size_bytes=size_bytes, source=source
            ),
        )

    async def create_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("create_disk", lambda agent: agent.create_disk(caller, spec=spec))

    async def drop_rescue_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("drop_rescue_disk", lambda agent: agent.drop_rescue_disk(caller, spec=spec))

    async def replace_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("replace_disk", lambda agent: agent.replace_disk(caller, spec=spec))

    async def resize_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("resize_disk", lambda agent: agent.resize_disk(caller, spec=spec))

    async def confirm_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("confirm_disk", lambda agent: agent.confirm_disk(caller, spec=spec))

    async def revert_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("revert_disk", lambda agent: agent.revert_disk(caller, spec=spec))

    async def pull_disk(self, caller: Caller, *, spec: GuestSpec, source: PoolSource) -> None:
        await self._call("pull_disk", lambda agent: agent.pull_disk(caller, spec=spec, source=source))

    def read_disk(self, *, pool_id: str, uid: str, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        return self._stream(
            "read_disk", lambda agent: agent.read_disk(pool_id=pool_id, uid=uid, file=file, offset=offset)
        )

    async def snapshot_disk(self, caller: Caller, *, spec: GuestSpec) -> SnapshotFile:
        return await self._call("snapshot_disk", lambda agent: agent.snapshot_disk(caller, spec=spec))

    async def take_inventory(self) -> Inventory:
        return await self._call("take_inventory", lambda agent: agent.take_inventory())

    async def claim_run_epoch(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("claim_run_epoch", lambda agent: agent.claim_run_epoch(caller, spec=spec))

    async def start_guest(self, caller: Caller, *, spec: GuestSpec, paused: bool = False) -> GuestStatus:
        return await self._call("start_guest", lambda agent: agent.start_guest(caller, spec=spec, paused=paused))

    async def probe_guest(self, *, uid: str, probe: GuestProbe) -> str:
        return await self._call("probe_guest", lambda agent: agent.probe_guest(uid=uid, probe=probe))

    async def stop_guest(self, caller: Caller, *, uid: str, grace_period_s: float) -> GuestStatus:
        return await self._call(
            "stop_guest", lambda agent: agent.stop_guest(caller, uid=uid, grace_period_s=grace_period_s)
        )

    async def reboot_guest(self, caller: Caller, *, uid: str, mode: RebootMode, timeout_s: float) -> RebootMode:
        return await self._call(
            "reboot_guest", lambda agent: agent.reboot_guest(caller, uid=uid, mode=mode, timeout_s=timeout_s)
        )

    async def pause_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        return await self._call("pause_guest", lambda agent: agent.pause_guest(caller, uid=uid))

    async def suspend_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        return await self._call("suspend_guest", lambda agent: agent.suspend_guest(caller, spec=spec))

    async def wake_guest(self, caller: Caller, *, spec: GuestSpec) -> GuestStatus:
        return await self._call("wake_guest", lambda agent: agent.wake_guest(caller, spec=spec))

    async def discard_memory(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("discard_memory", lambda agent: agent.discard_memory(caller, spec=spec))

    async def inject_nmi(self, caller: Caller, *, uid: str) -> None:
        await self._call("inject_nmi", lambda agent: agent.inject_nmi(caller, uid=uid))

    async def resume_guest(self, caller: Caller, *, uid: str) -> GuestStatus:
        return await self._call("resume_guest", lambda agent: agent.resume_guest(caller, uid=uid))

    async def remove_guest(self, caller: Caller, *, uid: str) -> None:
        await self._call("remove_guest", lambda agent: agent.remove_guest(caller, uid=uid))

    async def delete_disk(self, caller: Caller, *, spec: GuestSpec) -> None:
        await self._call("delete_disk", lambda agent: agent.delete_disk(caller, spec=spec))

    def migrate_guest(
        self, caller: Caller, *, spec: GuestSpec, destination: MigrationDestination, limits: MigrationLimits
    ) -> AsyncGenerator[MigrationProgress, None]:
        return self._stream(
            "migrate_guest",
            lambda agent: agent.migrate_guest(caller, spec=spec, destination=destination, limits=limits),
        )

    async def cancel_migration(self, caller: Caller, *, uid: str) -> None:
        await self._call("cancel_migration", lambda agent: agent.cancel_migration(caller, uid=uid))

    def attach_console(
        self, *, uid: str, input: AsyncIterator[bytes], take_over: bool = False
    ) -> AsyncGenerator[bytes, None]:
        return self._stream(
            "attach_console", lambda agent: agent.attach_console(uid=uid, input=input, take_over=take_over)
        )

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        return await self._call(
            "read_console", lambda agent: agent.read_console(uid=uid, offset=offset, limit_bytes=limit_bytes)
        )


async def _act_on(agent: AgentApi, act: Callable[[AgentApi], Awaitable[T]]) -> T:
    """Nothing is asked of the agent when the call is given up before it has begun."""
    return await act(agent)


async def _read_out(stream: AsyncGenerator[Any, None]) -> None:
    async with aclosing(stream):
        async for _ in stream:
            pass


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
