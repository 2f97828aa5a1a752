"""Rights in etcd: every node may write its own lease key and nothing else.

etcd takes the user's name from the Common Name of the client certificate, so users have no passwords. Its special user
and role `root` may do everything and must exist before rights are enforced. Every method may be repeated, also after
it was interrupted half-way.
"""

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

from leeward.clock import Clock
from leeward.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd import convert, methods
from leeward.store.etcd.member import Member
from leeward.store.etcd.members import Members
from leeward.store.etcd.methods import Method, RequestT, ResponseT
from leeward.store.etcd.tls import EtcdTls

ROOT = "root"
CONTROLLER_ROLE = "controller"
_NODE_ROLE_PREFIX = "key-of-"

# Administration is rare and etcd may be slow at it, so no second member is asked before the first has given up.
_ATTEMPT_S = 3.0


class EtcdAuth:
    """Administers etcd's users and roles. Once rights are enforced, `tls` must be the certificate of an admin.

    Raises StoreUnavailable when no member answers, PermissionDenied or Unauthenticated when it is not an admin's.
    """

    def __init__(self, endpoints: Sequence[str], *, tls: EtcdTls | None, clock: Clock) -> None:
        self._tls = tls
        self._members = Members(endpoints, tls=tls, clock=clock)

    async def bootstrap(self, *, prefix: str, controllers: Sequence[str], admins: Sequence[str] = ()) -> None:
        """Make the users that a cluster starts with, named as the Common Names of their certificates.

        `controllers` may read and write the keys below `prefix`; `admins`, and `root` itself, may do everything.
        """
        await self._ensure_role(ROOT)
        await self._ensure_role(CONTROLLER_ROLE)
        key, range_end = convert.range_of(prefix)
        await self._grant(CONTROLLER_ROLE, key, range_end)
        for user in (ROOT, *admins):
            await self._ensure_user(user, ROOT)
        for user in controllers:
            await self._ensure_user(user, CONTROLLER_ROLE)

    async def add_node_user(self, user: str, key: str) -> None:
        """Let `user` read and write exactly `key`; every other right that it has is taken away.

        Raises FailedPrecondition for an admin or a controller: their names are not for nodes.
        """
        role = _NODE_ROLE_PREFIX + user
        roles = await self._roles_of(user)
        if taken := {ROOT, CONTROLLER_ROLE} & set(roles):
            raise FailedPrecondition(f"{user} has the role {min(taken)} and cannot be a node's user")
        await self._ensure_role(role)
        await self._keep_only(role, key.encode())
        await self._grant(role, key.encode(), b"")
        await self._ensure_user(user, role)
        for other in roles:
            if other != role:
                await self._unless_gone(methods.USER_REVOKE_ROLE, pb.AuthUserRevokeRoleRequest(name=user, role=other))

    async def remove_node_user(self, user: str) -> None:
        """Take a node's user and its rights away; no error when it is gone already."""
        await self._unless_gone(methods.USER_DELETE, pb.AuthUserDeleteRequest(name=user))
        await self._unless_gone(methods.ROLE_DELETE, pb.AuthRoleDeleteRequest(role=_NODE_ROLE_PREFIX + user))

    async def enable(self) -> None:
        """Have etcd enforce rights from now on.

        Raises FailedPrecondition when this very connection would be locked out by it: its certificate must name a
        user with the role `root`, and etcd must run with `--client-cert-auth`.
        """
        name = _common_name(self._tls)
        if ROOT not in await self._roles_of(name):
            raise FailedPrecondition(f"{name} has not the role root in etcd: enabling rights would lock this admin out")
        await self._call(methods.AUTH_ENABLE, pb.AuthEnableRequest())

    async def close(self) -> None:
        """Let go of the connections."""
        await self._members.close()

    async def _ensure_role(self, role: str) -> None:
        await self._unless_exists(methods.ROLE_ADD, pb.AuthRoleAddRequest(name=role))

    async def _ensure_user(self, user: str, role: str) -> None:
        options = pb.UserAddOptions(no_password=True)
        await self._unless_exists(methods.USER_ADD, pb.AuthUserAddRequest(name=user, options=options))
        if role not in await self._roles_of(user):
            await self._call(methods.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user=user, role=role))

    async def _grant(self, role: str, key: bytes, range_end: bytes) -> None:
        right = pb.Permission(perm_type=pb.PERMISSION_TYPE_READWRITE, key=key, range_end=range_end)
        await self._call(methods.ROLE_GRANT_PERMISSION, pb.AuthRoleGrantPermissionRequest(name=role, perm=right))

    async def _keep_only(self, role: str, key: bytes) -> None:
        response = await self._call(methods.ROLE_GET, pb.AuthRoleGetRequest(role=role))
        for right in response.perm:
            if right.key != key or right.range_end:
                revocation = pb.AuthRoleRevokePermissionRequest(role=role, key=right.key, range_end=right.range_end)
                await self._unless_gone(methods.ROLE_REVOKE_PERMISSION, revocation)

    async def _roles_of(self, user: str) -> Sequence[str]:
        try:
            response = await self._call(methods.USER_GET, pb.AuthUserGetRequest(name=user))
        except NotFound:
            return ()
        return tuple(response.roles)

    async def _unless_exists(self, method: Method[RequestT, ResponseT], request: RequestT) -> None:
        try:
            await self._call(method, request)
        except AlreadyExists:
            # An earlier run, or an attempt whose answer was lost, has made it.
            return

    async def _unless_gone(self, method: Method[RequestT, ResponseT], request: RequestT) -> None:
        try:
            await self._call(method, request)
        except NotFound:
            # An earlier run, or an attempt whose answer was lost, has removed it.
            return

    async def _call(self, method: Method[RequestT, ResponseT], request: RequestT) -> ResponseT:
        async def attempt(member: Member, timeout_s: float) -> ResponseT:
            return await member.call(method, request, timeout_s=timeout_s)

        return await self._members.race(
            attempt, deadline_s=2 * _ATTEMPT_S, attempt_s=_ATTEMPT_S, hedge_after_s=_ATTEMPT_S
        )


def _common_name(tls: EtcdTls | None) -> str:
    if tls is None:
        raise FailedPrecondition("etcd can tell users apart only by client certificates: connect with TLS")
    names = x509.load_pem_x509_certificate(tls.cert_pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise InvalidArgument.field("tls", "the certificate has not exactly one Common Name")
    name = names[0].value
    return name if isinstance(name, str) else name.decode()
