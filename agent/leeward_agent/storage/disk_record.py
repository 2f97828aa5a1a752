"""`disk.json` beside a guest's disks: what was done to them, and which images may be marked as used by them. Pure.

An image is named here before it is marked and until its mark is taken back, so that a mark can always be traced.
"""

import json
from dataclasses import asdict, dataclass

from leeward.errors import StorageError


@dataclass(frozen=True, slots=True)
class SnapshotNote:
    """The last image that was made of the root disk, written before the image gets its name."""

    operation: str
    digest: str
    quiesced: bool


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """What is known of a guest's disks besides the files themselves. Operations by name; empty: none."""

    marks: tuple[str, ...] = ()  # Digests.
    replaced_by: str = ""
    resized_by: str = ""
    pulled_by: str = ""
    snapshot: SnapshotNote | None = None

    def encoded(self) -> bytes:
        """As the file holds it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decoded(cls, data: bytes, *, uid: str) -> "DiskRecord":
        """Raises StorageError when it cannot be understood."""
        try:
            fields = json.loads(data)
            note = fields["snapshot"]
            return cls(
                marks=tuple(str(digest) for digest in fields["marks"]),
                replaced_by=str(fields["replaced_by"]),
                resized_by=str(fields["resized_by"]),
                pulled_by=str(fields["pulled_by"]),
                snapshot=None if note is None else SnapshotNote(**note),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"the record of the disks of guest {uid} cannot be understood") from error
