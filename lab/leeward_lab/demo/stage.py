"""Where the demonstration is played: on real hosts, or on simulated ones. The story is the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leeward.client import Client


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """What a guest's own disk tells: how often it booted, its last line, and the lines that are missing before it."""

    boots: int
    lines: int
    missing: tuple[int, ...] = ()


class Stage(Protocol):
    """A running cluster with a hand on its power switches."""

    @property
    def hypervisor(self) -> str:
        """What runs the guests, for the closing line."""
        ...

    @property
    def client(self) -> Client:
        """An operator's client of the public API."""
        ...

    @property
    def image(self) -> Path:
        """The guests' disk image."""
        ...

    @property
    def image_format(self) -> str:
        """`qcow2` or `raw`."""
        ...

    async def cut_power(self, host: str) -> None:
        """Everything on a host is gone at once."""
        ...

    async def processes_of(self, uid: str) -> list[str]:
        """The hosts on which a process runs this guest, asked from the machine and not from Leeward."""
        ...

    async def disk_record(self, uid: str) -> DiskRecord:
        """What is on the guest's disk now."""
        ...
