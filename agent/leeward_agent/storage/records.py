"""Records of fixed size with a checksum, that are overwritten in place.

In place, because a file replaced by renaming gets a new identity each time, and a network file system may go on showing
another host the old one from its caches. The checksum tells a torn write from a whole one.
"""

import json
import zlib
from collections.abc import Mapping


def encode_record(content: Mapping[str, object], *, size_bytes: int) -> bytes:
    """`content` as one line of JSON behind its CRC-32, filled with spaces. Raises ValueError when it does not fit."""
    body = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    line = b"%08x %s" % (zlib.crc32(body), body)
    if len(line) >= size_bytes:
        raise ValueError(f"a record of {len(line)} bytes does not fit {size_bytes}")
    return line.ljust(size_bytes - 1) + b"\n"


def decode_record(data: bytes) -> dict[str, object] | None:
    """What `encode_record` was given, or None when the bytes are not a whole record."""
    checksum, _, body = data.rstrip().partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        content = json.loads(body)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def empty_record(size_bytes: int) -> bytes:
    """A place where no record was written yet."""
    return b" " * (size_bytes - 1) + b"\n"


def is_empty_record(data: bytes) -> bool:
    """Whether nothing was ever written here."""
    return not data.strip()
