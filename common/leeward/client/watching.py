"""Watches that outlive the controller they were opened at: no change is missed, and none told twice."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from leeward.client.endpoints import Endpoints
from leeward.client.rounds import Rounds, is_connection_trouble
from leeward.errors import Compacted, LeewardError, Unavailable


class Resource(Protocol):
    """What is watched: it has a name, and an etag that changes with each version."""

    name: str
    etag: str


ResourceT = TypeVar("ResourceT", bound=Resource)
MessageT = TypeVar("MessageT")


class ChangeKind(StrEnum):
    """What a change tells."""

    ADDED = "ADDED"  # The resource is there: created, or found when the watch began.
    MODIFIED = "MODIFIED"  # It has changed; it is told whole.
    REMOVED = "REMOVED"  # It is gone; only its name is told.
    BOOKMARK = "BOOKMARK"  # Nothing new: everything up to this revision has been told.


@dataclass(frozen=True, slots=True)
class Change(Generic[ResourceT]):
    """One change. `revision` is where to resume a later watch; 0 while what was there at first is still being told.

    `resource` is None in a BOOKMARK.
    """

    kind: ChangeKind
    resource: ResourceT | None
    revision: int


class Ledger(Generic[ResourceT]):
    """What a watcher has been told, so that a snapshot that is told again becomes the difference to it."""

    def __init__(self, make: Callable[[str], ResourceT]) -> None:
        """`make` builds a resource of which only the name is known."""
        self._make = make
        self._etags: dict[str, str] = {}
        self._unseen: set[str] = set()

    def begin_snapshot(self) -> None:
        """All there is will be told from the beginning, up to a BOOKMARK."""
        self._unseen = set(self._etags)

    def take(self, change: Change[ResourceT]) -> Iterator[Change[ResourceT]]:
        """What `change` means to a watcher who has been told all before."""
        resource = change.resource
        if change.kind is ChangeKind.BOOKMARK or resource is None:
            for name in sorted(self._unseen):
                del self._etags[name]
                yield Change(ChangeKind.REMOVED, self._make(name), change.revision)
            self._unseen.clear()
            yield change
            return
        self._unseen.discard(resource.name)
        known = self._etags.get(resource.name)
        if change.kind is ChangeKind.REMOVED:
            self._etags.pop(resource.name, None)
            yield change
            return
        self._etags[resource.name] = resource.etag
        if change.kind is ChangeKind.MODIFIED or known is None:
            yield change
        elif known != resource.etag:
            yield Change(ChangeKind.MODIFIED, resource, change.revision)


async def watch(
    open_at: Callable[[int], AsyncGenerator[Change[ResourceT], None]],
    ledger: Ledger[ResourceT],
    *,
    revision: int,
    endpoints: Endpoints,
    rounds: Rounds,
) -> AsyncGenerator[Change[ResourceT], None]:
    """Every change from `revision` on, opened anew at another endpoint when one fails.

    From revision 0 it begins with all there is, and finds its way back even when the revision to resume from has been
    compacted. From another one that raises Compacted, since what has been missed cannot be known here.
    """
    knows_all = revision == 0
    while True:
        if revision == 0:
            ledger.begin_snapshot()
        address = endpoints.current
        try:
            async with aclosing(open_at(revision)) as changes:
                async for change in changes:
                    rounds.reset()
                    revision = change.revision or revision
                    for told in ledger.take(change) if knows_all else (change,):
                        yield told
            raise _ended(address)
        except Compacted:
            if not knows_all:
                raise
            revision = 0
        except LeewardError as error:
            await go_on(address, error, endpoints=endpoints, rounds=rounds)


async def resumed(
    open_anew: Callable[[], AsyncGenerator[MessageT, None]], *, endpoints: Endpoints, rounds: Rounds
) -> AsyncGenerator[MessageT, None]:
    """The messages of a stream whose first message says all, opened anew at another endpoint when one fails.

    Endless: whoever iterates knows which message is the last.
    """
    while True:
        address = endpoints.current
        try:
            async with aclosing(open_anew()) as messages:
                async for message in messages:
                    rounds.reset()
                    yield message
            raise _ended(address)
        except LeewardError as error:
            await go_on(address, error, endpoints=endpoints, rounds=rounds)


async def go_on(address: str, error: LeewardError, *, endpoints: Endpoints, rounds: Rounds) -> None:
    """Return when a broken stream may be opened again; raise what cannot be helped by that."""
    if not is_connection_trouble(error):
        raise error
    endpoints.leave(address)
    await rounds.failed(address, error)


def _ended(address: str) -> Unavailable:
    return Unavailable(f"{address} ended the stream before its time", reason="CONNECTION_LOST")
