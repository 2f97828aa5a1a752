"""libvirtd or the guard hangs instead of dying; etcd loses its quorum in the middle of a failover."""

import asyncio
import signal

import pytest
from tests.support.etcd_members import leader_of, until_healthy
from tests.support.hosts import Lab, code_of, guard_log

from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]


async def test_libvirtd_that_hangs_ends_no_agent_and_no_guest_notices(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    process, before = guest.only_process(), await lab.conditions()
    agent = lab.host("host-a").spawned("agent").process

    assert await lab.host("host-a").signal("libvirtd", signal.SIGSTOP)
    # Longer than any question to libvirtd may take.
    await guest.until_tick(boot=1, more=12)
    assert await lab.conditions() == before, "a host whose libvirtd hangs beats on"
    assert await lab.host("host-a").signal("libvirtd", signal.SIGCONT)

    await guest.until_tick(boot=1, more=3)
    assert agent.alive()
    assert await lab.conditions() == before
    assert guest.only_process() == process
    guest.check_undisturbed(boots=1)
    await guest.stop()


async def test_a_guard_that_hangs_is_told_and_no_guest_notices(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    process = guest.only_process()
    kills_before = _kills(lab)

    assert await lab.host("host-a").signal("guard", signal.SIGSTOP)
    await lab.until_armed("host-a", armed=False)
    # Longer than a TTL: when it goes on it finds its deadline passed, and has to ask before it kills.
    await guest.until_tick(boot=1, more=8)
    assert await lab.host("host-a").signal("guard", signal.SIGCONT)
    await lab.until_armed("host-a")
    await guest.until_tick(boot=1, more=3)

    assert guest.only_process() == process
    assert _kills(lab) == kills_before
    assert {condition for condition, _ in (await lab.conditions()).values()} == {"CONDITION_READY"}
    guest.check_undisturbed(boots=1)
    await guest.stop()


async def test_etcd_loses_its_quorum_in_the_middle_of_a_failover(lab_with_three_etcd: Lab) -> None:
    lab = lab_with_three_etcd
    guest, bystander = await asyncio.gather(lab.running("web-1", host="host-a"), lab.running("web-2", host="host-b"))
    others = bystander.only_process()
    await lab.host("host-a").power_off()
    await lab.until_condition("host-a", "SUSPECT", "FENCING", "FENCED")
    leader = await leader_of(lab)
    second = next(member for member in lab.cluster.shape.etcd_names if member != leader)
    await asyncio.gather(*(lab.cluster.kill(member, "etcd") for member in (leader, second)))

    # Nothing can be proved now that could be written down, so nothing is started.
    await bystander.until_tick(boot=1, more=10)
    assert (await code_of(bystander.record()))[0] == "UNAVAILABLE"

    await asyncio.gather(*(lab.cluster.start_etcd(member) for member in (leader, second)))
    await until_healthy(lab)
    await guest.until_tick(boot=2)
    assert guest.only_process().host == "host-b"

    async def told() -> bool:
        return not (await guest.record()).current_operation

    await until(told, what="the end of the evacuation", timeout_s=30)
    guest.check_survived(boots=2)
    assert bystander.only_process() == others
    bystander.check_undisturbed(boots=1)
    await lab.return_home("host-a")
    await lab.until_condition("host-a", "QUARANTINED")
    await lab.uncordon("host-a")


def _kills(lab: Lab) -> int:
    return sum(line["event"] == "kill" for line in guard_log(lab, "host-a"))
