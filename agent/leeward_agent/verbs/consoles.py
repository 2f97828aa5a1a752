"""Serial consoles."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from leeward.agent.types import ConsoleChunk, GuestState
from leeward.errors import NotFound
from leeward_agent.power import in_memory
from leeward_agent.storage.names import checked_uid
from leeward_agent.verbs.base import Verbs


class ConsoleVerbs(Verbs):
    """The port `leeward.agent.api.AgentApi` says what each method promises."""

    async def read_console(self, *, uid: str, offset: int, limit_bytes: int) -> ConsoleChunk:
        return await self._consoles.read(checked_uid(uid), offset=offset, limit_bytes=limit_bytes)

    async def attach_console(
        self, *, uid: str, input: AsyncIterator[bytes], take_over: bool = False
    ) -> AsyncGenerator[bytes, None]:
        status = await self._hypervisor.get_guest(checked_uid(uid))
        if status.state is GuestState.ABSENT:
            raise NotFound(f"guest {uid} is not on {self._node}", resource=uid)
        if not in_memory(status):
            raise self._wrong_state(status, "attached to")
        output = self._consoles.attach(
            uid,
            lambda: self._hypervisor.attach_console(uid, console=self._consoles.files(uid), input=input),
            take_over=take_over,
        )
        async with aclosing(output):
            async for data in output:
                yield data
