"""`leeward instance console-log`: what a guest wrote to its serial console."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from leeward.cli.arguments import InstanceName
from leeward.cli.session import Session, call

_PAGE_BYTES = 1024 * 1024
_POLL_S = 0.5
_BYTES_A_LINE = 1024

# Terminal sequences (ECMA-48: CSI, OSC and the two-character ones), then all other control characters but tab and
# newline: a guest must not command the terminal of whoever reads its log.
_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def console_log(
    ctx: typer.Context,
    name: InstanceName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the guest writes, until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option(metavar="LINES", min=0, help="Only so many lines from the end; 0: all.")] = 0,
) -> None:
    """Write an instance's console log. At a terminal without its control sequences, else byte by byte."""

    async def work(session: Session) -> None:
        write = _write_text if sys.stdout.isatty() else _write_bytes
        async for chunk in _log(session, session.instance(name), follow=follow, tail=tail):
            write(chunk)

    call(ctx, work)


async def _log(session: Session, name: str, *, follow: bool, tail: int) -> AsyncIterator[bytes]:
    from leeward.v1.instance_service_pb2 import GetConsoleLogRequest

    offset = -tail * _BYTES_A_LINE
    lines_left = tail
    while True:
        request = GetConsoleLogRequest(name=name, offset=offset, limit_bytes=_PAGE_BYTES)
        answer = await session.client.instances.GetConsoleLog(request)
        at_end = answer.next_offset >= answer.end_offset
        if lines_left:
            yield b"".join(answer.data.splitlines(keepends=True)[-lines_left:])
            lines_left = 0
        elif answer.data:
            yield answer.data
        offset = answer.next_offset
        if at_end and not follow:
            return
        if at_end:
            await asyncio.sleep(_POLL_S)


def plain_text(data: bytes) -> str:
    """What a guest wrote, without anything that a terminal would obey."""
    text = _SEQUENCES.sub("", data.decode(errors="replace").replace("\r\n", "\n"))
    return _CONTROLS.sub("", text)


def _write_text(data: bytes) -> None:
    sys.stdout.write(plain_text(data))
    sys.stdout.flush()


def _write_bytes(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
