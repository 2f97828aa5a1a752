"""Which names may become part of a path in a pool. Nothing else ever does."""

import re

from leeward.agent.types import SHA256_HEX_LENGTH
from leeward.errors import InvalidArgument

_UID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(rf"[0-9a-f]{{{SHA256_HEX_LENGTH}}}")
_NODE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def checked_uid(uid: str) -> str:
    """`uid` itself, when it is 1 to 63 characters of `a-z0-9-`. Raises InvalidArgument."""
    if not is_uid(uid):
        raise InvalidArgument.field("uid", f"{uid!r} is not 1 to 63 characters of a-z, 0-9 and '-'")
    return uid


def checked_digest(digest: str) -> str:
    """`digest` itself, when it is a SHA-256 in lower-case hexadecimal. Raises InvalidArgument."""
    if not is_digest(digest):
        raise InvalidArgument.field("digest", f"{digest!r} is not a SHA-256 in lower-case hexadecimal")
    return digest


def is_digest(digest: str) -> bool:
    """Whether `digest` is a SHA-256 in lower-case hexadecimal."""
    return _DIGEST.fullmatch(digest) is not None


def is_uid(uid: str) -> bool:
    """Whether `uid` may name a guest's folder."""
    return _UID.fullmatch(uid) is not None


def checked_node(node: str) -> str:
    """`node` itself, when it is a DNS label in lower case. Raises InvalidArgument."""
    if not is_node(node):
        raise InvalidArgument.field("node", f"{node!r} is not a DNS label (1 to 63 characters of a-z, 0-9 and '-')")
    return node


def is_node(node: str) -> bool:
    """Whether `node` is a DNS label in lower case."""
    return _NODE.fullmatch(node) is not None
