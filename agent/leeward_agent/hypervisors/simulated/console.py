"""The serial console of a simulated guest: it echoes what is typed, and knows the command `echo`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from leeward_agent.hypervisors.simulated.guest import SimulatedGuest
from leeward_agent.hypervisors.simulated.host import SimulatedHost

_ECHO = b"echo "


async def attach(
    host: SimulatedHost, guest: SimulatedGuest, *, input: AsyncIterator[bytes]
) -> AsyncGenerator[bytes, None]:
    """What the guest writes, after an empty item; ends when it stops."""
    uid = guest.spec.uid
    output = host.open_console(uid)
    typing = asyncio.create_task(_type(host, guest, input))
    try:
        yield b""
        while (data := await _next(output, typing)) is not None:
            yield data
    finally:
        host.close_console(uid, output)
        typing.cancel()
        await asyncio.wait((typing,))


async def _next(output: "asyncio.Queue[bytes | None]", typing: "asyncio.Task[None]") -> bytes | None:
    """What is shown next. Raises what `input` raised."""
    getting = asyncio.ensure_future(output.get())
    try:
        while not getting.done():
            waiting = (getting,) if typing.done() else (getting, typing)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if typing.done():
                typing.result()
        return getting.result()
    finally:
        getting.cancel()


async def _type(host: SimulatedHost, guest: SimulatedGuest, input: AsyncIterator[bytes]) -> None:
    line = b""
    async for data in input:
        host.show(guest, data)
        *lines, line = (line + data).split(b"\n")
        for command in lines:
            if command.startswith(_ECHO):
                host.say(guest, command.removeprefix(_ECHO).decode(errors="replace"))
