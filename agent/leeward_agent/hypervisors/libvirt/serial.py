"""A guest's serial console over the socket that its QEMU listens on."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from leeward.errors import HypervisorError

CONNECT_TIMEOUT_S = 5.0
READ_BYTES = 64 * 1024


async def attach(socket: Path, *, uid: str, input: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What the guest writes; first of all nothing, once connected. Ends when QEMU closes it: when it ends.

    QEMU serves one connection at a time and lets others wait. Raises HypervisorError, and what `input` raises.
    """
    what = f"attach to the console of guest {uid}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
    except (OSError, TimeoutError) as error:
        raise HypervisorError(f"{what}: {error!r}") from error
    sending = asyncio.create_task(_send(writer, input))
    try:
        yield b""
        while data := await _read(reader, sending):
            yield data
    except ConnectionError:
        # QEMU ended while something was on its way: the same as its closing.
        return
    finally:
        sending.cancel()
        await asyncio.wait((sending,))
        writer.close()


async def _read(reader: asyncio.StreamReader, sending: "asyncio.Task[None]") -> bytes:
    """What comes next; nothing at the end. Raises what sending raises."""
    reading = asyncio.ensure_future(reader.read(READ_BYTES))
    try:
        while not reading.done():
            waiting = (reading,) if sending.done() else (reading, sending)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        return reading.result()
    finally:
        reading.cancel()


async def _send(writer: asyncio.StreamWriter, input: AsyncIterator[bytes]) -> None:
    async for data in input:
        writer.write(data)
        await writer.drain()
