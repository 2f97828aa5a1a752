"""The guard's process: its socket, its place in memory and in the scheduler, its loop. Standard library only."""

import argparse
import ctypes
import fcntl
import gc
import json
import os
import resource
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from leeward_agent.guard.core import Guard, Log
from leeward_agent.guard.kill import GUEST_PROGRAMS, Killer
from leeward_agent.guard.protocol import MAX_MESSAGE_BYTES, boottime_s
from leeward_agent.guard.state import kernel_boot_id
from leeward_agent.guard.watchdog import Watchdog

_MCL_CURRENT_AND_FUTURE = 1 | 2
_REALTIME_PRIORITY = 10
_MAX_OPEN_FILES = 4096
_MAX_ROUNDS = 20  # Of messages before the deadline is looked at, so that chatter cannot keep it from that.
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT. What was armed stays in the state file for the next run."""
    options = _parse(arguments)
    log = _open_log(options.log)
    lock = _lock_alone(options.state)
    _harden(log)
    guard = Guard(
        killer=Killer(clock=boottime_s, programs=options.programs),
        clock=boottime_s,
        log=log,
        state_path=options.state,
        boot_id=kernel_boot_id(),
        delay_s=options.delay,
        restart_grace_s=options.restart_grace,
        watchdog=Watchdog(options.watchdog, timeout_s=options.watchdog_timeout) if options.watchdog else None,
    )
    listener = _listen(options.socket)
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop.request)
    signal.signal(signal.SIGINT, stop.request)
    log({"event": "ready", "socket": str(options.socket)})
    try:
        _serve(guard, listener, stop)
    finally:
        listener.close()
        os.close(lock)
        log({"event": "stopped"})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="leeward-guard",
        description="Kills this host's guests on shared pools when the agent has stopped vouching for them.",
    )
    parser.add_argument("--socket", type=Path, required=True, help="where the agent reaches the guard")
    parser.add_argument("--state", type=Path, required=True, help="file that a restarted guard resumes from (on /run)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds granted after the deadline (default 0)")
    parser.add_argument(
        "--restart-grace",
        type=float,
        default=2.0,
        help="seconds for the agent to speak after a late restart (default 2)",
    )
    parser.add_argument("--log", type=Path, help="append JSON lines to this file (default: standard error)")
    parser.add_argument("--watchdog", type=Path, help="watchdog device to pet, such as /dev/watchdog")
    parser.add_argument(
        "--watchdog-timeout", type=int, default=10, help="seconds until the watchdog resets (default 10)"
    )
    parser.add_argument("--programs", default=GUEST_PROGRAMS, help="regular expression of the guests' programs")
    return parser.parse_args(arguments)


class _Stop:
    """Set by a signal; the loop looks at it."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True


def _serve(guard: Guard, listener: socket.socket, stop: _Stop) -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    wait_s = 0.0
    while not stop.requested:
        # Messages come before the deadline is judged: one that waited while this process did not run still counts. A
        # wait that ends by its time says nothing about messages, so it is looked again.
        ready = selector.select(wait_s) or selector.select(0)
        for _ in range(_MAX_ROUNDS):
            for key, _ in ready:
                peer = key.fileobj
                if peer is listener:
                    _accept(listener, selector)
                elif isinstance(peer, socket.socket):
                    _answer(guard, peer, selector)
            ready = selector.select(0)
            if not ready:
                break
        wait_s = guard.tick()
    selector.close()


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    with suppress(BlockingIOError, ConnectionError):
        peer, _ = listener.accept()
        peer.setblocking(False)
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        _, uid, _ = _PEER_CREDENTIALS.unpack(credentials)
        if uid in (0, os.geteuid()):
            selector.register(peer, selectors.EVENT_READ)
        else:
            peer.close()


def _answer(guard: Guard, peer: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        data = peer.recv(MAX_MESSAGE_BYTES)
        if data:
            peer.send(guard.handle(data))
            return
    except BlockingIOError:
        return  # Nothing to read after all, or an agent that does not read; it will ask again.
    except ConnectionError:
        pass  # It has gone, like one that sent its end.
    selector.unregister(peer)
    peer.close()


def _listen(path: Path) -> socket.socket:
    # The lock on the state file says that no other guard runs, so a socket that is there is a dead one's.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    listener.listen(8)
    return listener


def _lock_alone(state: Path) -> int:
    """Make sure that no other guard uses this state file, for as long as the descriptor is open."""
    fd = os.open(state.with_name(state.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"leeward-guard: another guard runs with the state file {state}")
    return fd


def _harden(log: Log) -> None:
    """Stay in memory, be the last to be killed, run before others, collect no garbage. As far as is permitted."""
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    except OSError as error:
        log({"event": "not_hardened", "what": "oom_score_adj", "error": str(error)})
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and libc.mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        log({"event": "not_hardened", "what": "mlockall", "error": os.strerror(ctypes.get_errno())})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
    except OSError as error:
        log({"event": "not_hardened", "what": "realtime scheduling", "error": str(error)})
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    gc.collect()
    gc.freeze()


def _open_log(path: Path | None) -> Log:
    """JSON lines with both clocks. A line that would have to wait for a reader is dropped: killing cannot wait."""
    fd = 2 if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def log(line: dict[str, object]) -> None:
        stamps = {"boottime_s": boottime_s(), "monotonic_s": time.monotonic(), "wall_s": time.time()}
        if any(events & select.POLLOUT for _, events in poll.poll(0)):
            with suppress(OSError):
                os.write(fd, json.dumps(line | stamps).encode() + b"\n")

    return log


if __name__ == "__main__":
    main()
