"""From a service of the contract and what serves it to gRPC handlers: every method is served."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from leeward.errors import InternalError
from leeward.rpc.handlers import Handler

_BUILDERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def register(server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
    """Serve `service` by the methods of `servicer` that bear its methods' names.

    Raises InternalError for a method that is not there: a call to it would fail in a way that tells the client nothing.
    """
    handlers = {}
    for method in service.methods:
        served = getattr(servicer, method.name, None)
        if served is None:
            raise InternalError(f"{method.full_name} is not served by {type(servicer).__name__}")
        handlers[method.name] = _handler(method, served)
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


def _handler(method: MethodDescriptor, served: Callable[..., Any]) -> Handler:
    request: type[Message] = GetMessageClass(method.input_type)
    build = _BUILDERS[method.client_streaming, method.server_streaming]
    return build(
        served, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
