"""From a service of the contract and what serves it to gRPC handlers: every method is served, or said to be unbuilt."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from leeward.errors import InternalError, Unimplemented
from leeward.rpc.handlers import Context, Handler
from leeward_controller.adapters.public.unimplemented import UNIMPLEMENTED

_BUILDERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def register(server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
    """Serve `service` by the methods of `servicer` that bear its methods' names.

    Raises InternalError for a method that is neither there nor listed as unimplemented, or both: a call to the former
    would fail in a way that tells the client nothing.
    """
    unbuilt = UNIMPLEMENTED.get(service.full_name, ())
    handlers = {}
    for method in service.methods:
        served = getattr(servicer, method.name, None)
        if (served is None) is not (method.name in unbuilt):
            raise InternalError(f"{method.full_name} must be either served or listed as unimplemented")
        handlers[method.name] = _handler(method, served or _unimplemented(method))
    unknown = set(unbuilt) - set(handlers)
    if unknown:
        raise InternalError(f"{service.full_name} has no {', '.join(sorted(unknown))}")
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


def _handler(method: MethodDescriptor, served: Callable[..., Any]) -> Handler:
    request: type[Message] = GetMessageClass(method.input_type)
    build = _BUILDERS[method.client_streaming, method.server_streaming]
    return build(
        served, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )


def _unimplemented(method: MethodDescriptor) -> Callable[..., Any]:
    error = Unimplemented(
        f"{method.name} is part of the contract, but this version has not built it",
        metadata={"method": method.full_name},
    )

    # Serves all kinds of methods: a streaming handler may also be a coroutine that writes what it answers itself.
    async def answer(request: object, context: Context) -> Message:
        raise error

    return answer
