"""A TCP proxy that cuts connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK_BYTES = 16_384


class CuttingProxy:
    """Forwards to one address. A connection is reset once `cut_after_bytes` have come back through it."""

    def __init__(self, target: str, *, cut_after_bytes: int) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cut_after_bytes = cut_after_bytes
        self._pumps: set[asyncio.Task[None]] = set()
        self._served: set[asyncio.Future[None]] = set()
        self.connections = 0
        self.endpoint = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        ended = asyncio.get_running_loop().create_future()
        self._served.add(ended)
        up = asyncio.create_task(_pump(reader, upstream_writer, limit_bytes=None))
        down = asyncio.create_task(_pump(upstream_reader, writer, limit_bytes=self._cut_after_bytes))
        self._pumps |= {up, down}
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, upstream_writer):
            each.transport.abort()
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, writer.wait_closed(), upstream_writer.wait_closed(), return_exceptions=True)
        self._pumps -= {up, down}
        self._served.discard(ended)
        ended.set_result(None)

    async def end(self) -> None:
        """End every connection."""
        for task in self._pumps:
            task.cancel()
        await asyncio.gather(*self._served)


@asynccontextmanager
async def cutting_proxy(target: str, *, cut_after_bytes: int) -> AsyncIterator[CuttingProxy]:
    """A proxy to `target` (`host:port`), listening on `endpoint`."""
    proxy = CuttingProxy(target, cut_after_bytes=cut_after_bytes)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limit_bytes: int | None) -> None:
    passed = 0
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
            passed += len(data)
            if limit_bytes is not None and passed >= limit_bytes:
                return
    except ConnectionError:
        # Either side is gone; the other one is cut by the caller.
        return
