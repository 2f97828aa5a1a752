"""`python -m leeward_lab.hosts.gateway DIRECTORY`: mount a gateway to DIRECTORY over DIRECTORY, and serve it.

Run inside a host's mount namespace, so that only this host goes through it. SIGUSR1 makes every request fail with an
I/O error, SIGUSR2 ends that; SIGSTOP makes every request hang. Files opened before go on working afterwards.
"""

import ctypes
import errno
import os
import signal
import sys
import threading
from pathlib import Path

from leeward_lab.hosts.gateway import FILE_SYSTEM, wire
from leeward_lab.hosts.gateway.files import Files
from leeward_lab.hosts.gateway.wire import Opcode, Request

_WORKERS = 4
_MS_NOSUID_NODEV = 2 | 4
# Bookkeeping that must go on while the pool is lost, or descriptors and nodes would leak.
_ALWAYS = {Opcode.INIT, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.INTERRUPT,
           Opcode.DESTROY}  # fmt: skip


class Gateway:
    """Serves one mount with a few threads until it is unmounted or the process is killed."""

    def __init__(self, directory: Path) -> None:
        # Opened before the mount covers it.
        self._files = Files(directory)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._lost = False
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        words = [b"leeward-pool", os.fsencode(directory), FILE_SYSTEM.encode(), _MS_NOSUID_NODEV, options.encode()]
        if libc.mount(*words) != 0:
            raise OSError(ctypes.get_errno(), f"cannot mount over {directory}")

    def serve(self) -> None:
        """Answer requests; the calling thread takes the signals."""
        watched = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        for _ in range(_WORKERS):
            threading.Thread(target=self._work, daemon=True).start()
        while (number := signal.sigwait(watched)) != signal.SIGTERM:
            self._lost = number == signal.SIGUSR1

    def _work(self) -> None:
        while True:
            try:
                request = Request.parse(os.read(self._device, wire.REQUEST_BYTES))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                # A request that was interrupted before it could be read.
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                raise
            if request.opcode == Opcode.SETLKW:
                threading.Thread(target=self._answer, args=(request,), daemon=True).start()
            else:
                self._answer(request)

    def _answer(self, request: Request) -> None:
        answer = self._result(request)
        if answer is None:
            return
        try:
            os.write(self._device, answer)
        except FileNotFoundError:
            # The caller was interrupted and no longer waits.
            return

    def _result(self, request: Request) -> bytes | None:
        """The answer's bytes; none for requests that want none."""
        handler = self._files.handlers.get(request.opcode)
        if handler is None:
            return wire.reply(request.unique, error=errno.ENOSYS)
        if self._lost and request.opcode not in _ALWAYS:
            return wire.reply(request.unique, error=errno.EIO)
        try:
            payload = handler(request)
        except OSError as error:
            return wire.reply(request.unique, error=error.errno or errno.EIO)
        return None if payload is None else wire.reply(request.unique, payload)


if __name__ == "__main__":
    Gateway(Path(sys.argv[1])).serve()
