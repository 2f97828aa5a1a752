"""The hardware watchdog. Standard library only. Interface: the kernel's `Documentation/watchdog/watchdog-api.rst`."""

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_WDIOC_SETTIMEOUT = 0xC0045706
_MAGIC_CLOSE = b"V"


class Watchdog:
    """A watchdog device: the host resets when it was opened and is then not petted for its timeout.

    Ending the process without `stop` leaves it running on purpose: a guard that died must not switch it off.
    """

    def __init__(self, path: Path, *, timeout_s: int) -> None:
        self._path = path
        self._wanted_timeout_s = timeout_s
        self._fd = -1
        self.timeout_s = timeout_s

    @property
    def running(self) -> bool:
        """Whether it counts."""
        return self._fd >= 0

    def start(self) -> None:
        """Open it, which starts it. Raises OSError."""
        if self.running:
            return
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(OSError):  # Not every device lets its timeout be set; it then keeps its own.
            answer = fcntl.ioctl(self._fd, _WDIOC_SETTIMEOUT, struct.pack("i", self._wanted_timeout_s))
            self.timeout_s = struct.unpack("i", answer)[0]

    def pet(self) -> None:
        """Put the reset off by the timeout. Raises OSError."""
        if self.running:
            os.write(self._fd, b"\0")

    def stop(self) -> None:
        """Switch it off, where the kernel allows that. Raises OSError."""
        if self.running:
            os.write(self._fd, _MAGIC_CLOSE)
            os.close(self._fd)
            self._fd = -1
