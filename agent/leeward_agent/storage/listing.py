"""The list of a guest's files that one agent gives another before it reads them. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from leeward.agent.disk_files import ROOT_DISK
from leeward.errors import StorageError
from leeward_agent.storage.layout import is_carried
from leeward_agent.storage.names import is_digest

MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file: its name in the guest's folder, its size, and what its bytes must have as SHA-256."""

    file: str
    size_bytes: int
    sha256: str


def encode_listing(files: Sequence[ListedFile]) -> bytes:
    """As JSON."""
    return json.dumps([asdict(each) for each in files]).encode()


def decode_listing(data: bytes) -> tuple[ListedFile, ...]:
    """The files, the root disk last.

    Raises StorageError when it cannot be understood, has no root disk, or names what is no file of a guest.
    """
    try:
        files = [
            ListedFile(str(each["file"]), int(each["size_bytes"]), str(each["sha256"])) for each in json.loads(data)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError("the list of a guest's files cannot be understood") from error
    for each in files:
        if not is_carried(each.file) or not is_digest(each.sha256) or each.size_bytes < 0:
            raise StorageError(f"the list of a guest's files names {each}, which is no file of a guest")
    names = [each.file for each in files]
    if ROOT_DISK not in names or len(set(names)) != len(names):
        raise StorageError(f"the list of a guest's files has no root disk, or one file twice: {', '.join(names)}")
    return tuple(sorted(files, key=lambda each: (each.file == ROOT_DISK, each.file)))
