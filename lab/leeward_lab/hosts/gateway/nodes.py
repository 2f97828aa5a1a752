"""The files and directories the kernel knows of, each held by a descriptor that follows it through renames."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from leeward_lab.hosts.gateway.wire import ROOT_NODE


@dataclass(slots=True)
class _Node:
    descriptor: int
    key: tuple[int, int]
    lookups: int


class Nodes:
    """Node numbers for the kernel. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
        status = os.stat(descriptor)
        key = (status.st_dev, status.st_ino)
        self._nodes = {ROOT_NODE: _Node(descriptor, key, lookups=1)}
        self._by_key = {key: ROOT_NODE}
        self._next = ROOT_NODE + 1
        self._lock = threading.Lock()

    def descriptor(self, node: int) -> int:
        """A descriptor for `*at` calls and status; it cannot be read or written."""
        return self._nodes[node].descriptor

    def path(self, node: int) -> str:
        """A path that leads to the node itself, for calls that take no descriptor."""
        return f"/proc/self/fd/{self.descriptor(node)}"

    def look_up(self, parent: int, name: bytes) -> tuple[int, os.stat_result]:
        """The node of a name, counted once more as known to the kernel. Raises OSError."""
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.descriptor(parent))
        status = os.stat(descriptor)
        key = (status.st_dev, status.st_ino)
        with self._lock:
            known = self._by_key.get(key)
            if known is not None:
                self._nodes[known].lookups += 1
                os.close(descriptor)
                return known, status
            number, self._next = self._next, self._next + 1
            self._nodes[number] = _Node(descriptor, key, lookups=1)
            self._by_key[key] = number
            return number, status

    def forget(self, node: int, lookups: int) -> None:
        """The kernel has dropped that many of its look-ups."""
        with self._lock:
            known = self._nodes.get(node)
            if known is None or node == ROOT_NODE:
                return
            known.lookups -= lookups
            if known.lookups <= 0:
                os.close(known.descriptor)
                del self._nodes[node], self._by_key[known.key]
