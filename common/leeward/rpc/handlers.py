"""Wrapping gRPC handlers of all four kinds in something that runs around each call."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, cast

import grpc

from leeward.errors import InternalError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]
Around: TypeAlias = Callable[[Context], AbstractAsyncContextManager[None]]

# What a servicer's method is to us: called with the request (or an iterator of requests) and the context.
_Method: TypeAlias = Callable[[Any, Context], Any]


def wrapped(handler: Handler, around: Around) -> Handler:
    """The same handler with `around(context)` entered before each call and left after it.

    Handlers are coroutine functions, or for streams of responses asynchronous generators; the latter are closed before
    `around` is left, whatever ends the call. Plain functions would block the event loop and are refused.
    """
    build = _BUILDERS[handler.request_streaming, handler.response_streaming]
    method = _method_of(handler)
    behaviour = _streaming(method, around) if handler.response_streaming else _single(method, around)
    return build(behaviour, handler.request_deserializer, handler.response_serializer)


_BUILDERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _method_of(handler: Handler) -> _Method:
    # The stubs know only the threaded server, whose methods look different.
    method = cast(
        "_Method | None",
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream,
    )
    if method is None:
        raise InternalError("a gRPC handler without a method was registered")
    return method


def _single(method: _Method, around: Around) -> _Method:
    async def call(request: Any, context: Context) -> Any:
        async with around(context):
            return await method(request, context)

    return call


def _streaming(method: _Method, around: Around) -> _Method:
    async def call(request: Any, context: Context) -> None:
        async with around(context):
            responses = method(request, context)
            if isinstance(responses, AsyncIterator):
                await _write_all(responses, context)
            else:
                # The other style of a streaming handler: a coroutine that calls context.write itself.
                await responses

    return call


async def _write_all(responses: AsyncIterator[Any], context: Context) -> None:
    try:
        async for response in responses:
            await context.write(response)
    finally:
        # A generator left behind by a broken-off call would run its clean-up whenever it is collected, if ever.
        close = getattr(responses, "aclose", None)
        if close is not None:
            await close()
