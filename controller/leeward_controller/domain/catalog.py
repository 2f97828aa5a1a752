"""What instances are made from: images and flavors."""

from dataclasses import dataclass, field
from datetime import datetime

from leeward.agent.types import DiskFormat


@dataclass(frozen=True, slots=True)
class Image:
    """An immutable disk file, named by its content digest; `pool_ids` says where it lies."""

    name: str
    uid: str
    digest: str
    format: DiskFormat
    size_bytes: int
    virtual_size_bytes: int
    pool_ids: tuple[str, ...]
    create_time: datetime
    created_by: str
    request_id: str = ""
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def minimum_disk_gib(self) -> int:
        """The smallest disk it fits on, in GiB."""
        return -(-self.virtual_size_bytes // 2**30)


@dataclass(frozen=True, slots=True)
class Flavor:
    """A size to choose: processors, memory and root disk."""

    flavor: str
    uid: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    create_time: datetime
    request_id: str = ""

    @property
    def name(self) -> str:
        """`flavors/{flavor}`."""
        return f"flavors/{self.flavor}"
