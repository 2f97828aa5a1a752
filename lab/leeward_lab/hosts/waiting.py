"""Waiting for something to become true, with a bound."""

import asyncio
from collections.abc import Awaitable, Callable

from leeward_lab.guest.commands import LabError


async def until(
    condition: Callable[[], Awaitable[bool]], *, what: str, timeout_s: float, poll_s: float = 0.02
) -> None:  # fmt: skip
    """Return as soon as `condition` answers true; `LabError`, saying `what`, when it has not within `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not await condition():
        if loop.time() > deadline:
            raise LabError(f"{what}: not within {timeout_s:g} s")
        await asyncio.sleep(poll_s)
