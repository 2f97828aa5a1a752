"""Leases: granted, renewed one beat at a time, revoked."""

from leeward.errors import LeaseNotFound
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd import methods
from leeward.store.etcd.member import Member
from leeward.store.etcd.members import Members

# The share of a beat's deadline after which the next member is asked as well.
_HEDGE_SHARE = 0.3


class Leases:
    """The lease part of the store."""

    def __init__(self, members: Members) -> None:
        self._members = members

    async def grant(self, ttl_s: int) -> int:
        """See `Store.grant_lease`. A second lease from a repeated attempt expires unused."""
        request = pb.LeaseGrantRequest(ttl=ttl_s)

        async def attempt(member: Member, timeout_s: float) -> int:
            response = await member.call(methods.LEASE_GRANT, request, timeout_s=timeout_s)
            return response.id

        return await self._members.race(attempt)

    async def keep_alive(self, lease_id: int, *, deadline_s: float) -> float:
        """See `Store.keep_alive`."""
        request = pb.LeaseKeepAliveRequest(id=lease_id)

        async def attempt(member: Member, timeout_s: float) -> float:
            response = await member.call(methods.LEASE_KEEP_ALIVE, request, timeout_s=timeout_s)
            if response.ttl <= 0:
                raise LeaseNotFound(f"lease {lease_id:x} has ended")
            return float(response.ttl)

        return await self._members.race(
            attempt, deadline_s=deadline_s, attempt_s=deadline_s, hedge_after_s=deadline_s * _HEDGE_SHARE
        )

    async def revoke(self, lease_id: int) -> None:
        """See `Store.revoke_lease`."""
        request = pb.LeaseRevokeRequest(id=lease_id)

        async def attempt(member: Member, timeout_s: float) -> None:
            try:
                await member.call(methods.LEASE_REVOKE, request, timeout_s=timeout_s)
            except LeaseNotFound:
                # It is gone, which is what was wanted.
                return

        await self._members.race(attempt)
