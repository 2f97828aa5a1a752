"""Pause, suspend, crash dump and console: what happens to a guest's memory and processors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from tests.support.hosts import CALL_S, Guest, Lab, code_of

from leeward.v1 import node_service_pb2
from leeward.v1.instance_service_pb2 import RebootMode

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(180)]

_STILL_S = 2.5


async def test_pause_and_unpause_without_a_boot_between(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    process = guest.only_process()
    await guest.act("PauseInstance")
    assert await guest.state() == "PAUSED"
    line = guest.last_tick().line
    await asyncio.sleep(_STILL_S)  # Nothing is awaited: that nothing happens is what is tested.
    assert guest.last_tick().line == line

    await guest.move("host-b")
    assert await guest.state() == "PAUSED"
    assert guest.last_tick().line == line, "it ran in the course of its migration"

    await guest.act("UnpauseInstance")
    assert await guest.state() == "ACTIVE"
    await guest.until_tick(boot=1, more=2)
    assert guest.only_process() != process
    guest.check_undisturbed(boots=1)


async def test_suspend_and_resume_without_a_boot_between(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await _suspend(guest)
    await guest.act("ResumeInstance")
    assert await guest.state() == "ACTIVE"
    await guest.until_tick(boot=1, more=2)
    assert not _memory(guest), "its memory could be used twice"
    guest.check_undisturbed(boots=1)

    await _suspend(guest)
    assert await guest.reboot(RebootMode.REBOOT_MODE_HARD) == "HARD"
    await guest.until_tick(boot=2)
    assert not _memory(guest)
    guest.check_undisturbed(boots=2)


async def test_resume_on_another_node_after_the_loss_of_its_own(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await _suspend(guest)
    await lab.host("host-a").power_off()
    await lab.until_condition("host-a", "EVACUATED", within_s=60.0)
    assert await guest.state() == "SUSPENDED"
    assert await guest.host() != "host-a"
    assert lab.qemus(guest.uid) == [], "it was meant to stay suspended"

    await guest.act("ResumeInstance")
    await guest.until_tick(boot=1, more=2)
    assert guest.only_process().host == await guest.host()
    guest.check_undisturbed(boots=1)
    await lab.return_home("host-a")
    await lab.until_condition("host-a", "QUARANTINED")
    await lab.client.nodes.UncordonNode(node_service_pb2.UncordonNodeRequest(name="nodes/host-a"), timeout=CALL_S)


async def test_crash_dump_reaches_the_kernel(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await guest.act("CrashDumpInstance")
    await guest.until_written("NMI")
    await guest.until_tick(boot=1, more=2)
    guest.check_undisturbed(boots=1)


async def test_console_log_and_attach_console(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    assert "40+2=42" in await _typed(guest, b"echo 40+2=$((40+2))\n", until="40+2=42")
    assert "40+2=42" in await guest.console(), "what an attached console shows is in the log, too"

    held = asyncio.Event()
    # The one before may not have been missed yet.
    first = asyncio.ensure_future(_typed(guest, b"\n", until="never", take_over=True, held=held))
    await asyncio.wait_for(held.wait(), CALL_S)
    code, refusal = await code_of(_typed(guest, b"\n", until="never"))
    assert code == "FAILED_PRECONDITION", refusal
    assert "again" in await _typed(guest, b"echo ag''ain\n", until="again", take_over=True)
    assert (await code_of(first))[0] != "OK", "the first one was not told that it is over"
    guest.check_undisturbed(boots=1)


async def _suspend(guest: Guest) -> None:
    await guest.act("SuspendInstance")
    assert await guest.state() == "SUSPENDED"
    assert guest.lab.qemus(guest.uid) == []
    assert _memory(guest)


def _memory(guest: Guest) -> bool:
    return guest.disk.with_name("memory.save").exists()


async def _typed(
    guest: Guest, data: bytes, *, until: str, take_over: bool = False, held: asyncio.Event | None = None
) -> str:
    """What the console shows after `data` was typed, up to `until`."""
    done = asyncio.Event()

    async def typed() -> AsyncIterator[bytes]:
        yield data
        await done.wait()

    shown = ""
    try:
        async with (
            asyncio.timeout(60.0),
            aclosing(guest.lab.client.attach_console(guest.name, typed(), take_over=take_over)) as pieces,
        ):
            async for piece in pieces:
                shown += piece.decode(errors="replace")
                if held is not None and "tick" in shown:
                    held.set()
                if until in shown:
                    return shown
    finally:
        done.set()
    raise AssertionError(f"the console ended without {until!r}: {shown[-300:]!r}")
