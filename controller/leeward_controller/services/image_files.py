"""The files behind images: where they lie, and the streams to and from the agents that hold them."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import structlog

from leeward.agent.api import AgentApi
from leeward.agent.types import DiskFormat, ImageFile
from leeward.errors import (
    AgentIndefinite,
    AgentUnavailable,
    FailedPrecondition,
    ImageRefused,
    InvalidArgument,
    LeewardError,
    StorageError,
    Unavailable,
    Violation,
)
from leeward_controller.domain.node import NodeCondition
from leeward_controller.ports import Agents
from leeward_controller.view import ClusterView

log = structlog.get_logger()

MAX_CHUNK_BYTES = 2 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
_AWAY = (AgentUnavailable, AgentIndefinite, StorageError)


@dataclass(frozen=True, slots=True)
class Place:
    """A pool, and a node through which it is reached."""

    pool_id: str
    node: str


class ImageFiles:
    """Image files in pools, through any agent that reaches them."""

    def __init__(self, *, view: ClusterView, agents: Agents) -> None:
        self._view = view
        self._agents = agents
        self._uploading: Counter[str] = Counter()

    def place_for(self, pool_id: str) -> Place:
        """Where to put a new image: `pool_id`, or of all pools the one on most nodes, then with most room.

        Raises FailedPrecondition when no node that is READY has it.
        """
        found: dict[str, list[tuple[str, int]]] = {}
        for stored in self._view.nodes.values():
            node, lease = stored.value, self._view.leases.get(stored.value.node)
            if lease is None or node.condition is not NodeCondition.READY:
                continue
            for pool in lease.report.pools:
                if pool.healthy and pool_id in ("", pool.pool_id):
                    found.setdefault(pool.pool_id, []).append((node.node, pool.available_gib))
        if not found:
            what = f"pool {pool_id}" if pool_id else "any pool"
            raise FailedPrecondition(
                f"no node that is READY has {what}, so there is nowhere to put an image",
                reason="NO_POOL",
                violations=[Violation("POOL", pool_id or "pools", "no node that is READY has it working")],
            )
        chosen = max(sorted(found), key=lambda each: (len(found[each]), max(room for _, room in found[each])))
        return Place(chosen, min(node for node, _ in found[chosen]))

    @contextmanager
    def upload(self, digest: str) -> Iterator[None]:
        """While an upload of this digest goes on, `uploads` counts it."""
        self._uploading[digest] += 1
        try:
            yield
        finally:
            self._uploading[digest] -= 1
            if not self._uploading[digest]:
                del self._uploading[digest]

    def uploads(self, digest: str) -> int:
        """How many images of this digest this replica is taking in."""
        return self._uploading[digest]

    async def store(
        self, place: Place, *, digest: str, format: DiskFormat, size_bytes: int, chunks: AsyncIterator[bytes]
    ) -> ImageFile:
        """Pass the bytes on to an agent as they come, no faster than it takes them.

        Raises ImageRefused, InvalidArgument (too few or too many bytes, or what `chunks` raised), StorageError,
        AgentUnavailable, AgentIndefinite. Nothing is left in the pool then.
        """
        source = _Source(chunks, size_bytes)
        agent = self._agent(place.node)
        try:
            async with aclosing(source.pieces()) as pieces:
                stored = await agent.store_image(
                    pool_id=place.pool_id, digest=digest, format=format, size_bytes=size_bytes, chunks=pieces
                )
        except LeewardError as error:
            if source.failure is not None:
                raise source.failure from error
            raise
        if source.failure is not None:
            # The agent had it already and needed no more bytes; what came is wrong all the same.
            raise source.failure
        if (stored.size_bytes, stored.format) != (size_bytes, format):
            raise ImageRefused(
                f"the file of SHA-256 {digest} is a {stored.format} of {stored.size_bytes} bytes, not a {format} of "
                f"{size_bytes} as declared"
            )
        return stored

    async def read(self, pool_ids: Sequence[str], *, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The file's bytes from `offset`; goes on through another node when one is lost. Raises Unavailable."""
        lost: LeewardError | None = None
        for place in self._places_with(pool_ids):
            try:
                agent = self._agent(place.node)
                chunks = agent.read_image(pool_id=place.pool_id, digest=digest, offset=offset)
                async for chunk in chunks:
                    yield chunk
                    offset += len(chunk)
                return
            except _AWAY as error:
                log.info("image.read_elsewhere", node=place.node, why=error.message)
                lost = error
        pools = ", ".join(pool_ids)
        raise Unavailable(f"no node that is alive can read the image from {pools}", retry_after_s=1.0) from lost

    async def delete(self, pool_ids: Sequence[str], *, digest: str) -> None:
        """Remove the file from its pools. One that cannot be reached now keeps it: that costs room and nothing else."""
        for pool_id in pool_ids:
            try:
                await self._delete_in(pool_id, digest)
            except (*_AWAY, FailedPrecondition) as error:
                log.warning("image.file_left_behind", pool=pool_id, digest=digest, why=error.message)

    async def _delete_in(self, pool_id: str, digest: str) -> None:
        error: LeewardError = AgentUnavailable(f"no node that is alive has pool {pool_id}")
        for place in self._places_with([pool_id]):
            try:
                await self._agent(place.node).delete_image(pool_id=pool_id, digest=digest)
                return
            except _AWAY as failed:
                error = failed
        raise error

    def _places_with(self, pool_ids: Sequence[str]) -> list[Place]:
        return [
            Place(pool.pool_id, node)
            for node, lease in sorted(self._view.leases.items())
            for pool in lease.report.pools
            if pool.healthy and pool.pool_id in pool_ids
        ]

    def _agent(self, node: str) -> AgentApi:
        lease = self._view.leases.get(node)
        if lease is None:
            raise AgentUnavailable(f"nodes/{node} has no heartbeat")
        return self._agents.at(node=node, address=lease.report.address)


class _Source:
    """The client's bytes on their way: counted, cut to a size agents take, and never an exception on the agent's side.

    What is wrong with them ends the stream early, so that the agent refuses and cleans up; `failure` then says it in
    the words that the client needs.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size_bytes: int) -> None:
        self._chunks = chunks
        self._size_bytes = size_bytes
        self.failure: LeewardError | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes in pieces of at most CHUNK_BYTES. The last one is held back until it is known to be the last."""
        received, held = 0, b""
        try:
            async for chunk in self._chunks:
                received += len(chunk)
                if len(chunk) > MAX_CHUNK_BYTES:
                    told = f"has {len(chunk)} bytes, at most {MAX_CHUNK_BYTES} are allowed"
                    self.failure = InvalidArgument.field("chunk", told)
                    return
                if received > self._size_bytes:
                    self.failure = InvalidArgument.field(
                        "chunk", f"more than the {self._size_bytes} bytes that size_bytes declares were sent"
                    )
                    return
                for start in range(0, len(chunk), CHUNK_BYTES):
                    if held:
                        yield held
                    held = chunk[start : start + CHUNK_BYTES]
        except LeewardError as error:
            self.failure = error
            return
        if received < self._size_bytes:
            self.failure = InvalidArgument.field(
                "chunk", f"the upload ended after {received} of the {self._size_bytes} bytes that size_bytes declares"
            )
            return
        yield held
