"""`leeward instance console`: talking to a guest over its serial console."""

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated

import typer

from leeward.cli.arguments import InstanceName
from leeward.cli.console import console_log
from leeward.cli.session import Session, call, say
from leeward.cli.units import parse_duration

_READ_BYTES = 64 * 1024
_ESCAPE = b"\x1d"  # Ctrl-], as in telnet and virsh.


def console(
    ctx: typer.Context,
    name: InstanceName,
    take_over: Annotated[bool, typer.Option("--take-over", help="End whoever is attached.")] = False,
    linger: Annotated[
        str, typer.Option(metavar="DURATION", help="When input ends, show for so long what the guest answers.")
    ] = "1s",
    log: Annotated[bool, typer.Option("--log", help="Write the console log instead, as console-log does.")] = False,
) -> None:
    """Attach to an instance's serial console. At a terminal Ctrl-] detaches; else input goes to the guest as it is."""
    if log:
        console_log(ctx, name, follow=False, tail=0)
        return
    linger_s = parse_duration(linger, field="linger").total_seconds()

    async def work(session: Session) -> None:
        await _attached(session, name, take_over=take_over, linger_s=linger_s)

    call(ctx, work)


async def _attached(session: Session, name: str, *, take_over: bool, linger_s: float) -> None:
    interactive = sys.stdin.isatty()
    keyboard = _Keyboard(sys.stdin.fileno(), escape=_ESCAPE if interactive else b"")
    console = session.client.attach_console(session.instance(name), keyboard.pieces(), take_over=take_over)
    async with aclosing(console) as pieces:
        # The first piece says that it is attached, so what is refused is told before the terminal is raw.
        first = await anext(pieces, b"")
        with _raw_terminal(sys.stdin.fileno(), wanted=interactive):
            if interactive:
                # What is typed from here on is for the guest; a raw terminal returns for nobody.
                print(f"Attached to {name}. Ctrl-] detaches.", end="\r\n", file=sys.stderr, flush=True)
            _write(first)
            detached = await _until_detached(pieces, keyboard, linger_s)
        if interactive:
            say(f"\nDetached from {name}." if detached else "\nThe console has ended.")


async def _until_detached(pieces: AsyncGenerator[bytes, None], keyboard: "_Keyboard", linger_s: float) -> bool:
    """Show what the guest writes. True when the user has had enough, False when there is no more."""
    showing = asyncio.ensure_future(_show(pieces))
    leaving = asyncio.ensure_future(keyboard.left(linger_s))
    try:
        await asyncio.wait({showing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if showing.done():
            showing.result()
        return not showing.done()
    finally:
        showing.cancel()
        leaving.cancel()
        await asyncio.wait({showing, leaving})


async def _show(pieces: AsyncGenerator[bytes, None]) -> None:
    async for piece in pieces:
        _write(piece)


def _write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


class _Keyboard:
    """What comes from standard input, be it a terminal, a pipe or a file."""

    def __init__(self, descriptor: int, *, escape: bytes) -> None:
        self._descriptor = descriptor
        self._escape = escape
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._escaped = asyncio.Event()
        self._ended = asyncio.Event()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The input until it ends, or until the escape is typed."""
        # Files cannot be waited for by a loop, and a thread of a pool that reads would keep the program from ending.
        thread = threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True)
        thread.start()
        while data := await self._queue.get():
            before, escape, _ = data.partition(self._escape) if self._escape else (data, b"", b"")
            if before:
                yield before
            if escape:
                self._escaped.set()
                return
        self._ended.set()

    async def left(self, linger_s: float) -> None:
        """Until the escape is typed, or the input has ended `linger_s` ago."""
        escaped = asyncio.ensure_future(self._escaped.wait())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({escaped, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not escaped.done():
                await asyncio.sleep(linger_s)
        finally:
            escaped.cancel()
            ended.cancel()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except OSError:
                # Linux says EIO when a terminal has been hung up.
                data = b""
            putting = self._queue.put(data)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            except (RuntimeError, concurrent.futures.CancelledError):
                # The console is over, and the loop with it.
                putting.close()
                return
            if not data:
                return


@contextmanager
def _raw_terminal(descriptor: int, *, wanted: bool) -> Iterator[None]:
    """Pass every key on at once, also Ctrl-C, and leave the terminal as it was."""
    if not wanted:
        yield
        return
    import termios
    import tty

    saved = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
