"""Hosts that die or vanish: what is proved dead is restarted elsewhere, once; what is only out of sight runs on."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from tests.support.fencing import FenceButton
from tests.support.hosts import BOOT_S, CALL_S, Guest, Lab, Qemu, code_of, guard_log

from leeward.v1 import instance_service_pb2, node_service_pb2
from leeward.v1.instance_pb2 import Instance, InstanceEvent, Readiness, RestartPriority
from leeward.v1.node_pb2 import FenceProofKind
from leeward.v1.operation_pb2 import OperationType
from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(300)]


async def test_a_power_cut(lab: Lab) -> None:
    """Its guests run again elsewhere, each after what it needs; the host comes back quarantined, then useful."""
    lost, stopped, elsewhere = await asyncio.gather(
        lab.running("web-1", host="host-a"), lab.running("web-2", host="host-a"), lab.running("web-3", host="host-c")
    )
    untouched = elsewhere.only_process()
    await stopped.stop()
    database = Instance(
        name=lost.name,
        restart_priority=RestartPriority.RESTART_PRIORITY_HIGHEST,
        readiness=Readiness(probe=Readiness.PROBE_GUEST_AGENT),
    )
    await lab.client.instances.UpdateInstance(instance_service_pb2.UpdateInstanceRequest(instance=database))

    await lab.host("host-a").power_off()
    await lost.until_tick(boot=2)
    assert await _proof(lab, "host-a") == FenceProofKind.FENCE_PROOF_KIND_SILENCE
    await lab.until_condition("host-a", "EVACUATED")
    await _check_survived_elsewhere(lost, "host-a")
    first, second = await _evacuation(lab, lost), await _evacuation(lab, stopped)
    assert [step.step for step in first.steps][-1] == "await_ready"
    assert (first.steps[-1].outcome, first.outcome) == ("done", "SUCCEEDED")
    assert second.start_time.ToDatetime() >= first.end_time.ToDatetime()
    assert await stopped.state() == "STOPPED"
    await stopped.start()
    assert stopped.only_process().host == await stopped.host() != "host-a"
    assert elsewhere.only_process() == untouched

    await lab.return_home("host-a")
    await lab.until_condition("host-a", "QUARANTINED")
    assert (await lab.domains())["host-a"] == []
    code, _ = await code_of(lab.launch("web-4", host="host-a"))
    assert code == "FAILED_PRECONDITION"
    await lab.uncordon("host-a")
    again = await lab.launch("web-5", host="host-a")
    assert again.only_process().host == "host-a"


async def _evacuation(lab: Lab, guest: Guest) -> InstanceEvent:
    events = await lab.client.list_instance_events(guest.name)
    return next(event for event in events if event.type == OperationType.OPERATION_TYPE_EVACUATE)


async def test_a_reboot_faster_than_any_heartbeat_is_missed(lab: Lab) -> None:
    """What ran on a host that was rebooted at once is started again, on it or elsewhere, from the same disk."""
    guest = await lab.running("web-1", host="host-a")
    await lab.host("host-a").power_off()
    await lab.return_home("host-a")
    await guest.until_tick(boot=2)
    guest.only_process()
    guest.check_survived(boots=2)
    if await lab.until_condition("host-a", "READY", "QUARANTINED") == "QUARANTINED":
        await lab.uncordon("host-a")


async def test_a_partitioned_host_keeps_its_guests(lab: Lab) -> None:
    """Only the network is gone: its storage heartbeat says that it lives, so nothing is restarted."""
    guest = await lab.running("web-1", host="host-a")
    process = guest.only_process()
    await lab.host("host-a").partition()
    await lab.until_condition("host-a", "ISOLATED")
    # Longer than any proof takes.
    await guest.until_tick(boot=1, more=12)
    assert await lab.condition("host-a") == "ISOLATED"
    await lab.host("host-a").heal()
    await lab.until_condition("host-a", "READY")
    await guest.until_tick(boot=1)
    assert guest.only_process() == process
    assert not _kills(lab, "host-a")
    guest.check_undisturbed(boots=1)


async def test_a_partitioned_host_that_is_fenced_takes_its_poison_pill(lab: Lab) -> None:
    """An operator wants its guests where clients reach them: told through the storage, it ends them and says so."""
    guest = await lab.running("web-1", host="host-b")
    process = guest.only_process()
    await lab.host("host-b").partition()
    await lab.until_condition("host-b", "ISOLATED")
    await lab.done(lab.client.nodes.FenceNode(node_service_pb2.FenceNodeRequest(name="nodes/host-b"), timeout=CALL_S))
    assert await _proof(lab, "host-b") == FenceProofKind.FENCE_PROOF_KIND_POISON_PILL
    await guest.until_tick(boot=2)
    await _check_survived_elsewhere(guest, "host-b")
    assert _killed_s(lab, process) < guest.only_process().started_s
    await _comes_back_empty(lab, guest, "host-b")
    again = await lab.running("web-2", host="host-b")
    await again.until_tick(boot=1, more=6)
    assert not [kill for kill in _kills(lab, "host-b") if kill["pid"] == again.only_process().pid]


async def test_a_host_without_network_and_storage_kills_its_guests_first(lab: Lab) -> None:
    """Nobody can reach it, and it lives: its guard ends each guest before another host starts it."""
    guest = await lab.running("web-1", host="host-b")
    process = guest.only_process()
    await asyncio.gather(lab.host("host-b").partition(), lab.host("host-b").detach_storage())
    await guest.until_tick(boot=2)
    await _check_survived_elsewhere(guest, "host-b")
    killed_s = _killed_s(lab, process)
    started_s = guest.only_process().started_s
    print(f"killed at {killed_s:.2f} s, started elsewhere at {started_s:.2f} s: {started_s - killed_s:.2f} s later")
    assert killed_s < started_s
    assert await _proof(lab, "host-b") == FenceProofKind.FENCE_PROOF_KIND_SILENCE
    await _comes_back_empty(lab, guest, "host-b")


async def test_a_host_whose_agent_hangs_kills_its_guests_first(lab: Lab) -> None:
    """Network and storage are well, but nobody vouches for the guests any more."""
    guest = await lab.running("web-1", host="host-a")
    process = guest.only_process()
    await lab.host("host-a").signal("agent", signal.SIGSTOP)
    await guest.until_tick(boot=2)
    await _check_survived_elsewhere(guest, "host-a")
    assert _killed_s(lab, process) < guest.only_process().started_s
    await lab.host("host-a").signal("agent", signal.SIGCONT)
    await _comes_back_empty(lab, guest, "host-a")


async def test_a_host_without_storage_pauses_its_guests(lab: Lab) -> None:
    """They wait for their disk and run on when it is back; nobody gives the host up meanwhile."""
    guest = await lab.running("web-1", host="host-b")
    process = guest.only_process()
    before = await lab.conditions()
    await lab.host("host-b").detach_storage()
    await until(lambda: _paused(lab, guest), what="the guest pausing", timeout_s=BOOT_S)
    await until(lambda: _pool_healthy(lab, "host-b", healthy=False), what="the API telling of it", timeout_s=30)
    last = guest.last_tick()
    # Long enough for a proof, were one sought: the silence of its slot, as the others see it.
    await lab.launch("web-2", host="host-a")
    await _until_silent(lab, "host-b", 10.0)
    assert guest.last_tick() == last
    assert await lab.conditions() == before

    await lab.host("host-b").attach_storage()
    await guest.until_tick(boot=1, more=2)
    await until(lambda: _pool_healthy(lab, "host-b", healthy=True), what="the API telling of it", timeout_s=30)
    assert guest.only_process() == process
    assert await lab.conditions() == before
    guest.check_survived(boots=1)


async def test_without_a_guard_silence_proves_nothing_until_somebody_attests(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await lab.cluster.kill("host-a", "guard")
    await lab.until_armed("host-a", armed=False)
    boot_id = (await lab.node("host-a")).boot_id
    attestation = node_service_pb2.AttestNodeFencedRequest(
        name="nodes/host-a", boot_id=boot_id, evidence="I pulled the plug"
    )
    code, error = await code_of(lab.client.nodes.AttestNodeFenced(attestation, timeout=CALL_S))
    assert code == "FAILED_PRECONDITION", f"a host that lives was attested to be off: {error}"

    await lab.host("host-a").power_off()
    await lab.until_condition("host-a", "FENCING")
    await _until_silent(lab, "host-a", 12.0)
    assert await lab.condition("host-a") == "FENCING"
    assert await guest.host() == "host-a"
    request = instance_service_pb2.EvacuateInstanceRequest(name=guest.name)
    code, error = await code_of(lab.done(lab.client.instances.EvacuateInstance(request, timeout=CALL_S)))
    assert code == "FAILED_PRECONDITION", error

    proof = await lab.client.nodes.AttestNodeFenced(attestation, timeout=CALL_S)
    assert (proof.kind, proof.evidence) == (FenceProofKind.FENCE_PROOF_KIND_ATTESTATION, "I pulled the plug")
    await guest.until_tick(boot=2)
    await _check_survived_elsewhere(guest, "host-a")
    await lab.until_condition("host-a", "EVACUATED")
    await lab.return_home("host-a")
    await lab.until_condition("host-a", "QUARANTINED")
    await lab.uncordon("host-a")


async def test_a_fence_device_proves_what_silence_cannot(lab: Lab) -> None:
    """The host hangs and has no guard that would end its guests; its power is cut, and that is proof enough."""
    guest = await lab.running("web-1", host="host-c")
    button = FenceButton(_device_directory(lab), lab.host("host-c"))
    await lab.cluster.kill("host-c", "guard")
    await lab.until_armed("host-c", armed=False)
    await asyncio.gather(lab.host("host-c").partition(), lab.host("host-c").signal("agent", signal.SIGSTOP))
    await button.obey(within_s=30.0)
    await guest.until_tick(boot=2)
    assert await _proof(lab, "host-c") == FenceProofKind.FENCE_PROOF_KIND_POWER_OFF
    await _check_survived_elsewhere(guest, "host-c")
    button.release()
    await lab.return_home("host-c")
    await lab.until_condition("host-c", "QUARANTINED")
    await lab.uncordon("host-c")


async def _check_survived_elsewhere(guest: Guest, lost: str) -> None:
    """It runs once, on another host, from the same disk, on which nothing is missing."""
    host = guest.only_process().host
    assert host != lost

    async def told() -> bool:
        record = await guest.record()
        return record.node == f"nodes/{host}" and not record.current_operation

    await until(told, what=f"the API telling that {guest.name} is on {host}", timeout_s=30)
    guest.check_survived(boots=2)


async def _comes_back_empty(lab: Lab, guest: Guest, host: str) -> None:
    """Healed, it holds nothing of the guest that was moved, and is quarantined until it is released."""
    process = guest.only_process()
    await lab.host(host).heal()
    if host in lab.cluster.shape.detachable_pool:
        await lab.host(host).attach_storage()
    await lab.until_condition(host, "QUARANTINED")

    async def empty() -> bool:
        return (await lab.domains())[host] == []

    await until(empty, what=f"{host} putting its leftovers aside", timeout_s=30, poll_s=0.2)
    await lab.uncordon(host)
    assert await lab.condition(host) == "READY"
    await guest.until_tick(boot=2, more=2)
    assert guest.only_process() == process


async def _proof(lab: Lab, host: str) -> int:
    proof = (await lab.node(host)).fence_proof
    print(f"{host}: {FenceProofKind.Name(proof.kind)}, {proof.evidence}")
    return proof.kind


async def _pool_healthy(lab: Lab, host: str, *, healthy: bool) -> bool:
    """Whether the API says so of the pool that all hosts share; that of the host alone is well all the time."""
    shared, own = (await lab.node(host)).pools
    return own.healthy and shared.healthy is healthy


async def _paused(lab: Lab, guest: Guest) -> bool:
    host = guest.only_process().host
    listed = await lab.host(host).run(["virsh", "-c", "qemu:///system", "list", "--state-paused", "--name"])
    return listed.stdout.split() != []


async def _until_silent(lab: Lab, host: str, seconds: float) -> None:
    """Wait until the storage heartbeat of a host is that old."""
    slot = lab.cluster.lab.pool / "heartbeats" / host

    async def silent() -> bool:
        return time.time() - (await asyncio.to_thread(slot.stat)).st_mtime >= seconds

    await until(silent, what=f"{slot} being {seconds:g} s old", timeout_s=seconds + 30)


def _kills(lab: Lab, host: str) -> list[dict[str, object]]:
    return [line for line in guard_log(lab, host) if line["event"] == "kill"]


def _killed_s(lab: Lab, process: Qemu) -> float:
    """When the guard of its host saw the end of a process that it had killed, on CLOCK_BOOTTIME."""
    mine = [line for line in guard_log(lab, process.host) if line.get("pid") == process.pid_inside]
    assert [line["event"] for line in mine] == ["kill", "gone"], f"{process} was not killed by its guard"
    at_s = mine[-1]["at_s"]
    assert isinstance(at_s, float)
    return at_s


def _device_directory(lab: Lab) -> Path:
    config = lab.cluster.controller_config
    assert config is not None
    return config.parent
