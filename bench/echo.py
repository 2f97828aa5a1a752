"""A bare grpc.aio server that answers with a given number of bytes: `python -m bench.echo ADDRESS TLS_DIRECTORY`.

It is what reads are compared with: same process layout, same TLS, same channel and server options, nothing behind.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc

from leeward.rpc.server import server_options
from leeward.tls import TlsMaterial

METHOD = "/bench.Echo/Call"


async def _call(request: bytes, _context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
    size = int.from_bytes(request[:4], "big")
    return bytes(size)


async def _serve(address: str, tls: TlsMaterial) -> None:
    server = grpc.aio.server(options=server_options())
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_call)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Call": handler}),))
    server.add_secure_port(address, tls.server_credentials())
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], TlsMaterial.load(Path(sys.argv[2]))))
