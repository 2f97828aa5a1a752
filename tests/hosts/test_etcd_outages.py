"""etcd loses a member, and all of them: the control plane says so, and no guest notices."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from tests.support.etcd_members import leader_of, until_healthy
from tests.support.hosts import Guest, Lab, code_of

from leeward.errors import LeewardError
from leeward.v1 import instance_service_pb2
from leeward_lab.demo.observer import Observer
from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(300)]

_ASK_EVERY_S = 0.1
_PATIENT_S = 30.0


@dataclass
class Asked:
    """What became of a question that was put again and again."""

    failures: list[LeewardError] = field(default_factory=list)
    longest_s: float = 0.0
    answers: int = 0


@asynccontextmanager
async def asking(lab: Lab, guest: Guest) -> AsyncIterator[Asked]:
    """Keep asking the API for an instance while the block runs."""
    asked = Asked()

    async def ask() -> None:
        while True:
            began_s = time.monotonic()
            try:
                await guest.record()
                asked.answers += 1
            except LeewardError as error:
                asked.failures.append(error)
            asked.longest_s = max(asked.longest_s, time.monotonic() - began_s)
            await asyncio.sleep(_ASK_EVERY_S)

    task = asyncio.ensure_future(ask())
    try:
        yield asked
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_of_three_members_is_lost(lab_with_three_etcd: Lab) -> None:
    """The leader is killed, then another one stops answering: each time it is as if nothing had happened."""
    lab = lab_with_three_etcd
    guest = await lab.running("web-1", host="host-a")
    process, record, before = guest.only_process(), await guest.record(), await lab.conditions()

    leader = await leader_of(lab)
    async with asking(lab, guest) as asked:
        await lab.cluster.kill(leader, "etcd")
        # Longer than a lease lasts: those that are not renewed are lost by then.
        await guest.until_tick(boot=1, more=10)
    _check_answered(asked, f"{leader} (the leader) killed")
    await lab.cluster.start_etcd(leader)
    await until_healthy(lab)

    assert await lab.conditions() == before

    leader = await leader_of(lab)
    async with asking(lab, guest) as asked, Observer(lab.client) as observer:
        await lab.cluster.signal(leader, "etcd", signal.SIGSTOP)
        await guest.until_tick(boot=1, more=10)
        await lab.cluster.signal(leader, "etcd", signal.SIGCONT)
        await until_healthy(lab)
        # Longer than any proof takes, in case one is sought now.
        await guest.until_tick(boot=1, more=8)
    _check_answered(asked, f"{leader} (the leader) stopped")
    # In older releases a leader that wakes up revokes leases that its successor has renewed (etcd-io/etcd#15247).
    # Agents notice at once and are back, so a node may be doubted for a moment, and no more.
    assert {condition for _, condition in observer.conditions} <= {"READY", "SUSPECT"}
    assert {condition for condition, _ in (await lab.conditions()).values()} == {"CONDITION_READY"}
    assert await guest.record() == record
    assert guest.only_process() == process
    guest.check_undisturbed(boots=1)


async def test_all_of_etcd_is_lost_for_a_while(lab_with_three_etcd: Lab) -> None:
    """Guests run on, the API says that it cannot tell, and afterwards everything is as it was."""
    lab = lab_with_three_etcd
    guests = await asyncio.gather(lab.running("web-1", host="host-a"), lab.running("web-2", host="host-b"))
    processes, records = [guest.only_process() for guest in guests], [await guest.record() for guest in guests]
    members = lab.cluster.shape.etcd_names

    await asyncio.gather(*(lab.cluster.kill(member, "etcd") for member in members))
    await guests[0].until_tick(boot=1, more=10)
    code, error = await code_of(guests[0].record())
    assert code == "UNAVAILABLE", error
    assert error is not None
    assert error.retry_after_s is not None, f"there is no RetryInfo with {error}"
    request = instance_service_pb2.StopInstanceRequest(name=guests[0].name)
    code, error = await code_of(lab.client.instances.StopInstance(request, timeout=_PATIENT_S))
    assert code == "UNAVAILABLE", error
    # By now etcd has been away for half a minute, many times the lease's TTL.
    await guests[1].until_tick(boot=1)
    await asyncio.gather(*(lab.cluster.start_etcd(member) for member in members))

    async def answers() -> bool:
        return (await code_of(guests[0].record()))[0] == "OK"

    await until(answers, what="the API answering again", timeout_s=30)
    for host in lab.cluster.shape.host_names:
        await lab.until_condition(host, "READY")
    # Longer than any proof takes, in case one is sought now.
    await guests[0].until_tick(boot=1, more=10)
    assert [await guest.record() for guest in guests] == records
    assert [guest.only_process() for guest in guests] == processes
    for guest in guests:
        guest.check_undisturbed(boots=1)
    created = await lab.launch("web-3", host="host-a")
    assert created.only_process().host == "host-a"


def _check_answered(asked: Asked, what: str) -> None:
    print(f"{what}: {asked.answers} answers, {len(asked.failures)} failures, the slowest took {asked.longest_s:.2f} s")
    assert asked.failures == []
    assert asked.answers > 20
    assert asked.longest_s < 5
