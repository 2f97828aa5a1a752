"""The one place where a server turns exceptions into gRPC statuses."""

import asyncio
from types import TracebackType

import grpc
import structlog
from grpc_status import rpc_status

from leeward.clock import Ids
from leeward.errors import Code, InternalError, LeewardError
from leeward.rpc.handlers import Context, Continuation, Handler, wrapped
from leeward.rpc.status import wire_status_of

_log = structlog.get_logger(__name__)

# These tell of a defect or of damage, so they belong in the log even though the caller is told too.
_LOGGED_CODES = frozenset({Code.INTERNAL, Code.DATA_LOSS, Code.UNKNOWN})


class ServerErrors(grpc.aio.ServerInterceptor):
    """Ends a call that raised with a google.rpc.Status. Must be the outermost interceptor.

    A LeewardError goes to the caller as it is. Anything else is a defect: it is logged with its traceback under a new
    incident id, and the caller gets INTERNAL with that id and no internals.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        return wrapped(handler, lambda context: _Reporting(context, method, self._ids))


class _Reporting:
    """Around one call: lets results, cancellation and gRPC's own aborts through, and reports everything else.

    It is written as a class since `__aexit__` is handed the exception, whichever it is.
    """

    def __init__(self, context: Context, method: str, ids: Ids) -> None:
        self._context = context
        self._method = method
        self._ids = ids

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Cancellation, like the end of the process, is no Exception.
        if not isinstance(raised, Exception) or isinstance(raised, grpc.aio.AbortError):
            return
        if self._context.done() or isinstance(raised, grpc.aio.InternalError):
            # The caller has gone: an answer could not be sent, which is what gRPC's InternalError says, or nobody waits
            # for one. This is cancellation, only noticed in another way.
            _log.debug("call broken off", method=self._method, peer=self._context.peer(), error=repr(raised))
            raise asyncio.CancelledError from raised
        error = raised if isinstance(raised, LeewardError) else self._incident(raised)
        if isinstance(raised, LeewardError) and raised.code in _LOGGED_CODES:
            _log.error("call failed", method=self._method, peer=self._context.peer(), exc_info=raised)
        await self._context.abort_with_status(rpc_status.to_status(wire_status_of(error)))

    def _incident(self, raised: Exception) -> LeewardError:
        incident = self._ids.new()
        _log.error(
            "unexpected exception", incident=incident, method=self._method, peer=self._context.peer(), exc_info=raised
        )
        return InternalError(f"an internal error occurred, incident {incident}", metadata={"incident": incident})
