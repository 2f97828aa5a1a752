"""Pages of a list, all read at one revision of the store.

A page token holds the revision and the key where the page before ended, and is bound to the query it came from by a
digest, so that it cannot be used with another parent or filter. It is no secret and gives no right.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from leeward.errors import Compacted, InvalidArgument
from leeward_controller.records import Kind, Records, Stored
from leeward_controller.services.checks import Checks

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page of which list. `page_size` 0 is the default; more than the most is cut to it."""

    page_size: int = 0
    page_token: str = ""
    filter: str = ""

    @property
    def limit(self) -> int:
        """How many records to read."""
        return min(self.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)

    def check(self, checks: Checks) -> None:
        """Note a page size that cannot be one."""
        checks.that(self.page_size >= 0, "page_size", f"{self.page_size} is negative; allowed: 0 to {MAX_PAGE_SIZE}")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """One page; `next_page_token` is empty when it is the last."""

    items: tuple[Stored[T], ...]
    next_page_token: str
    revision: int


@dataclass(frozen=True, slots=True)
class _Position:
    revision: int
    last_key: str


async def list_page(
    records: Records,
    kind: Kind[T],
    request: PageRequest,
    *,
    prefix: str = "",
    keep: Callable[[T], bool] = lambda _: True,
) -> Listing[T]:
    """One page of the records below `prefix` that `keep` lets through; a page can be short and not the last.

    Raises InvalidArgument for a token that is not of this list, or that has expired, and StoreUnavailable.
    """
    scope = f"{kind.prefix}\0{prefix}\0{request.filter}"
    position = _decode(request.page_token, scope)
    try:
        page = await records.list(
            kind, prefix=prefix, limit=request.limit, start_after=position.last_key, revision=position.revision
        )
    except Compacted as error:
        raise expired_token() from error
    token = encode_token(scope, page.revision, page.items[-1].key) if page.more and page.items else ""
    return Listing(tuple(item for item in page.items if keep(item.value)), token, page.revision)


def expired_token() -> InvalidArgument:
    """What to raise for a token whose revision the store has forgotten."""
    error = InvalidArgument.field("page_token", "has expired; list again from the first page")
    error.specific_reason = "PAGE_TOKEN_EXPIRED"
    return error


def encode_token(scope: str, revision: int, last: str) -> str:
    """The token that continues the list `scope` after `last`, as of `revision`."""
    body = f"{revision}\n{last}".encode()
    return base64.urlsafe_b64encode(_digest(scope, body) + body).decode().rstrip("=")


def decode_token(token: str, scope: str) -> tuple[int, str]:
    """Revision and last key of a token; 0 and empty for no token. Raises InvalidArgument."""
    position = _decode(token, scope)
    return position.revision, position.last_key


def _decode(token: str, scope: str) -> _Position:
    if not token:
        return _Position(0, "")
    wrong = InvalidArgument.field("page_token", "is not a token of this list; use the one answered by the page before")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if digest != _digest(scope, body):
            raise wrong
        revision, _, last = body.decode().partition("\n")
        return _Position(int(revision), last)
    except (binascii.Error, ValueError) as error:
        raise wrong from error


def _digest(scope: str, body: bytes) -> bytes:
    return hashlib.sha256(scope.encode() + b"\0\0" + body).digest()[:_DIGEST_BYTES]
