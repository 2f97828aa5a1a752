"""`python -m tests.support.fencing_beside_calls DIRECTORY`: cuts power while calls are under way, as a controller does.

It prints what each fence agent that failed had to say.
"""

# First, as in the controller's own process: what it settles must come before gRPC.
import leeward_controller  # isort: skip

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from leeward import event_loop
from leeward.clock import SystemClock
from leeward_controller.adapters.fence_agents import FenceAgents, FenceDevice

_CHANNELS = 6
_CUTS = 40
_PROGRAM = """#!/bin/sh
while read -r option; do
    case "$option" in action=*) action=${option#action=} ;; esac
done
[ "$action" = off ] && touch "$0.off"
[ "$action" = status ] && [ -e "$0.off" ] && exit 2
exit 0
"""


async def _answer(request: bytes, _: Any) -> bytes:
    return request


async def _flow(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
    while True:
        yield b"beat"
        await asyncio.sleep(0.01)


async def _server() -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    handlers = {
        "Answer": grpc.unary_unary_rpc_method_handler(_answer),
        "Flow": grpc.unary_stream_rpc_method_handler(_flow),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def _call(channel: grpc.aio.Channel) -> None:
    answer = channel.unary_unary("/test.Calls/Answer")
    while True:
        await answer(b"again")


async def _follow(channel: grpc.aio.Channel) -> None:
    async for _ in channel.unary_stream("/test.Calls/Flow")(b""):
        pass


async def _cut(directory: Path) -> None:
    program = directory / "fence"
    program.write_text(_PROGRAM, encoding="ascii")
    program.chmod(0o755)
    fence = FenceAgents({"host": FenceDevice(str(program))}, clock=SystemClock())
    switched_off = Path(f"{program}.off")
    for _ in range(_CUTS):
        outcome = await fence.power_off("host")
        if not outcome.confirmed_off:
            print(outcome.evidence)
        await asyncio.to_thread(switched_off.unlink, missing_ok=True)


async def _main(directory: Path) -> None:
    server, port = await _server()
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("number", n)]) for n in range(_CHANNELS)]
    busy = [asyncio.ensure_future(each(channel)) for channel in channels for each in (_call, _follow)]
    await asyncio.wait(busy, timeout=0.5)
    try:
        await _cut(directory)
    finally:
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        for channel in channels:
            await channel.close()
        await server.stop(None)


if __name__ == "__main__":
    assert leeward_controller.__doc__
    event_loop.run(_main(Path(sys.argv[1])))
