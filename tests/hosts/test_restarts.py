"""Leeward's own programs die and are started again: no guest notices, and no node is given up."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import pytest
from tests.support.hosts import Guest, Lab, code_of, guard_log

from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]


async def test_programs_of_a_host_are_restarted_under_running_guests(lab: Lab) -> None:
    guest, other = await asyncio.gather(lab.running("web-1", host="host-a"), lab.running("web-2", host="host-a"))
    processes = (guest.only_process(), other.only_process())
    before = await lab.conditions()

    async def start_agent() -> None:
        await lab.cluster.start_agent("host-a")

    async def start_guard() -> None:
        await lab.cluster.start_guard("host-a")

    async def start_libvirtd() -> None:
        await lab.host("host-a").start_libvirtd()

    # The cluster may be one that an earlier test used, and its guard may have killed then.
    kills_before = _kills(lab)
    await _end_and_start(lab, "agent", signal.SIGKILL, start_agent)
    await _until_served(guest)
    await _end_and_start(lab, "agent", signal.SIGTERM, start_agent)
    await _until_served(guest)
    await _end_and_start(lab, "libvirtd", signal.SIGKILL, start_libvirtd)
    await _until_served(guest)
    await _end_and_start(lab, "guard", signal.SIGKILL, start_guard)
    await lab.until_armed("host-a")
    # Longer than any TTL: whatever was to come of all this has come.
    await guest.until_tick(boot=1, more=10)

    assert (guest.only_process(), other.only_process()) == processes
    assert await lab.conditions() == before
    assert _kills(lab) == kills_before
    for each in (guest, other):
        each.check_undisturbed(boots=1)
    await guest.stop()
    assert await guest.state() == "STOPPED"
    assert "powering off" in guest.written()


def _kills(lab: Lab) -> int:
    return sum(line["event"] == "kill" for line in guard_log(lab, "host-a"))


async def _until_served(guest: Guest) -> None:
    """Wait until the API reaches the host's agent, and through it the guest."""

    async def served() -> bool:
        return (await code_of(guest.console()))[0] == "OK"

    await until(served, what=f"the agent serving {guest.name}", timeout_s=30)
    await guest.until_tick(boot=1)


async def _end_and_start(lab: Lab, program: str, number: signal.Signals, start: Callable[[], Awaitable[None]]) -> None:
    process = lab.host("host-a").spawned(program).process

    async def ended() -> bool:
        return not process.alive()

    assert await lab.host("host-a").signal(program, number)
    await until(ended, what=f"the end of {program}", timeout_s=30)
    await start()
