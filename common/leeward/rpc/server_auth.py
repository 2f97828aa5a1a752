"""Who is calling, and whether that role may: from the client's certificate, for every call."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import grpc

from leeward.errors import InternalError, InvalidArgument, PermissionDenied, Unauthenticated
from leeward.identity import Principal, Role
from leeward.rpc.handlers import Context, Continuation, Handler, wrapped

Policy = Mapping[str, frozenset[Role]]
"""Which roles may call what: by method, or by its beginning. The longest match decides, and no match is no."""

_TLS = b"ssl"

_principal: ContextVar[Principal] = ContextVar("leeward_principal")


def current_principal() -> Principal:
    """Who makes the call that is being served. Raises InternalError outside of a call."""
    try:
        return _principal.get()
    except LookupError as error:
        raise InternalError("there is no principal outside of a call") from error


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Make `principal` the current one inside the block, for calls that come by no wire."""
    token = _principal.set(principal)
    try:
        yield
    finally:
        _principal.reset(token)


class ServerAuth(grpc.aio.ServerInterceptor):
    """Lets a call through when its principal's role is allowed by the policy, and sets `current_principal`.

    Over TLS the principal is the one in the client's certificate, which the handshake has verified. Over plain text it
    is `plaintext_principal`; without one such calls are refused. Refusals are Unauthenticated and PermissionDenied.
    """

    def __init__(self, policy: Policy, *, plaintext_principal: Principal | None = None) -> None:
        self._rules = sorted(policy.items(), key=lambda rule: len(rule[0]), reverse=True)
        self._plaintext_principal = plaintext_principal

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        allowed = self._allowed(method)

        @asynccontextmanager
        async def authorized(context: Context) -> AsyncIterator[None]:
            principal = self._principal_of(context)
            if principal.role not in allowed:
                raise PermissionDenied(_refusal(principal, method, allowed), metadata={"principal": str(principal)})
            with acting_as(principal):
                yield

        return wrapped(handler, authorized)

    def _allowed(self, method: str) -> frozenset[Role]:
        for prefix, roles in self._rules:
            if method.startswith(prefix):
                return roles
        return frozenset()

    def _principal_of(self, context: Context) -> Principal:
        auth = context.auth_context()
        if _TLS not in auth.get("transport_security_type", ()):
            if self._plaintext_principal is None:
                raise Unauthenticated("this server takes calls over TLS only")
            return self._plaintext_principal
        names = list(auth.get("x509_common_name", ()))
        if len(names) != 1:
            raise Unauthenticated("show a certificate of this cluster: the call came without one")
        try:
            return Principal.parse(names[0].decode())
        except (InvalidArgument, UnicodeDecodeError) as error:
            raise Unauthenticated(f"the certificate shown is not one of this cluster's: {error}") from error


def _refusal(principal: Principal, method: str, allowed: frozenset[Role]) -> str:
    needed = f"it needs the role {' or '.join(sorted(allowed))}" if allowed else "nobody may"
    return f"{principal} may not call {method}: {needed}"
