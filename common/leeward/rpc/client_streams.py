"""How a call that streams requests really ended.

When a server ends such a call while the client still writes (it refuses an upload, say), the write fails, and grpc.aio
reports INTERNAL "Internal error from Core" instead of what the server said: with grpcio 1.85 nearly always on streams
both ways, often on the others (https://github.com/grpc/grpc/issues/36066). The server's status can be had all the same:
it was there either when the call first became done, and was overwritten, or it comes a moment later.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from leeward.errors import Unavailable
from leeward.rpc.client_errors import to_leeward_error, write_failed

T = TypeVar("T")

_WAIT_S = 1.0
_POLL_S = 0.01


@asynccontextmanager
async def stream_errors(
    call: grpc.aio.Call,
    peer: str,
    *,
    unreachable: type[Unavailable] = Unavailable,
    lost: type[Unavailable] | None = None,
) -> AsyncIterator[None]:
    """Around everything that is done with a call that streams requests; enter it as soon as the call is made.

    What gRPC raises comes out as `to_leeward_error` makes it from the status that the server ended the call with. That
    goes for a write to a call that has ended, too.
    """
    endings: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda _: endings.append(_ending(call)))
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        if isinstance(error, asyncio.InvalidStateError) and not call.done():
            raise
        shown = error if isinstance(error, grpc.aio.AioRpcError) else _ending(call)
        ending = await _true_ending(call, shown, endings)
        if ending.code() is grpc.StatusCode.OK:
            # It needed no more of what was being written. The answer is gone with the failed write, so ask again.
            message = f"{peer} answered before everything was sent, and the answer is lost"
            raise (lost(message) if lost else Unavailable(message, reason="CONNECTION_LOST")) from error
        raise to_leeward_error(ending, peer=peer, unreachable=unreachable, lost=lost) from error
    except grpc.aio.UsageError as error:
        # Raised before anything is sent, as a rule because the channel has been closed.
        raise unreachable(f"cannot call {peer}: {error}") from error


async def _true_ending(
    call: grpc.aio.Call, shown: grpc.aio.AioRpcError, endings: list[grpc.aio.AioRpcError]
) -> grpc.aio.AioRpcError:
    """The status that came from the server, or from the loss of its connection; `shown` when there is none."""
    if not write_failed(shown):
        return shown
    for ending in endings:
        if not write_failed(ending):
            return ending
    for _ in range(round(_WAIT_S / _POLL_S)):
        await asyncio.sleep(_POLL_S)
        ending = _ending(call)
        if not write_failed(ending):
            return ending
    return shown


def _ending(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    """How a call that is done has ended, as far as it knows now."""
    return grpc.aio.AioRpcError(
        _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), _at_once(call.details())
    )


def _at_once(answer: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that need not wait, from where nothing can be awaited."""
    try:
        answer.send(None)
    except StopIteration as result:
        value: T = result.value
        return value
    finally:
        answer.close()
    raise asyncio.InvalidStateError("the call is not done")
