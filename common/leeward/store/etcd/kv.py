"""Keys: reads, which any member may be asked twice, and transactions, which are sent once."""

from collections.abc import Sequence

from leeward.errors import Compacted
from leeward.etcd.v1 import etcd_pb2 as pb
from leeward.store.etcd import convert, methods
from leeward.store.etcd.failures import RevisionGoneError
from leeward.store.etcd.member import Member
from leeward.store.etcd.members import Members
from leeward.store.limits import check_transaction
from leeward.store.port import Condition, KeyValue, Mutation, Range, Transaction

_PAGE = 500


class Keys:
    """The key-value part of the store."""

    def __init__(self, members: Members) -> None:
        self._members = members

    async def get(self, key: str) -> KeyValue | None:
        """See `Store.get`."""
        response = await self._range(pb.RangeRequest(key=key.encode()))
        return convert.key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, limit: int, start_after: str, revision: int, keys_only: bool) -> Range:
        """See `Store.list`. Read in pages, all at the revision of the first one."""
        first, end = convert.range_of(prefix)
        if start_after:
            first = max(first, convert.after(start_after))
        items: list[KeyValue] = []
        while True:
            page = min(_PAGE, limit - len(items)) if limit else _PAGE
            request = pb.RangeRequest(key=first, range_end=end, limit=page, revision=revision, keys_only=keys_only)
            try:
                response = await self._range(request)
            except RevisionGoneError:
                raise Compacted(await self._current_revision()) from None
            revision = revision or response.header.revision
            items.extend(convert.key_value(kv) for kv in response.kvs)
            if not response.more or len(items) == limit:
                return Range(tuple(items), revision, response.more)
            first = response.kvs[-1].key + b"\0"

    async def transact(self, conditions: Sequence[Condition], mutations: Sequence[Mutation]) -> Transaction:
        """See `Store.transact`."""
        check_transaction(conditions, mutations)
        request = pb.TxnRequest(
            compare=[convert.compare(condition) for condition in conditions],
            success=[convert.operation(mutation) for mutation in mutations],
        )

        async def attempt(member: Member, timeout_s: float) -> pb.TxnResponse:
            return await member.call(methods.TXN, request, timeout_s=timeout_s)

        response = await self._members.send(attempt)
        return Transaction(response.succeeded, response.header.revision)

    async def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        request = pb.CompactionRequest(revision=revision)

        async def attempt(member: Member, timeout_s: float) -> None:
            try:
                await member.call(methods.COMPACT, request, timeout_s=timeout_s)
            except RevisionGoneError:
                # Somebody was faster, perhaps we ourselves in an attempt whose answer was lost.
                return

        await self._members.race(attempt)

    async def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        async def attempt(member: Member, timeout_s: float) -> pb.RangeResponse:
            return await member.call(methods.RANGE, request, timeout_s=timeout_s)

        return await self._members.race(attempt)

    async def _current_revision(self) -> int:
        response = await self._range(pb.RangeRequest(key=b"\0", count_only=True))
        return response.header.revision
