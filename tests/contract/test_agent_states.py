"""What every AgentApi promises of guests that stand still, of their disks and of their consoles."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.test_agent_api import DIGEST, IMAGE, UID, caller, spec, start, store
from tests.support.agents import AgentHost, AgentLab
from tests.support.hypervisors import until

from leeward.agent.types import (
    CloudInit,
    DiskFormat,
    GuestState,
    PoolSource,
    RescueImage,
)
from leeward.errors import (
    AgentUnavailable,
    FailedPrecondition,
    NotFound,
    StaleClaim,
    StaleRunEpoch,
    Unavailable,
    WrongState,
)
from leeward_agent.storage.memory import MemoryPoolContents

_WAIT_S = 10.0


@pytest.fixture(params=["core", "grpc"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AgentLab]:
    async with AgentLab(tmp_path, transport=request.param) as made:
        yield made


@pytest.fixture
async def a(lab: AgentLab) -> AgentHost:
    return await lab.add("host-a")


async def becomes(host: AgentHost, state: GuestState) -> None:
    async def is_it() -> bool:
        return (await host.api.get_guest(uid=UID)).state is state

    await until(is_it, within_s=_WAIT_S, what=f"{UID} {state}")


async def test_a_guest_is_halted_and_goes_on_and_each_may_be_repeated(a: AgentHost) -> None:
    with pytest.raises(WrongState):
        await a.api.pause_guest(caller(), uid=UID)
    await start(a.api)
    for _ in range(2):
        assert (await a.api.pause_guest(caller(), uid=UID)).state is GuestState.PAUSED
    with pytest.raises(WrongState):
        await a.api.inject_nmi(caller(), uid=UID)
    for _ in range(2):
        assert (await a.api.resume_guest(caller(), uid=UID)).state is GuestState.RUNNING
    await a.api.inject_nmi(caller(), uid=UID)


async def test_a_guest_is_started_halted(a: AgentHost) -> None:
    await store(a.api)
    await a.api.create_disk(caller(), spec=spec())
    await a.api.claim_run_epoch(caller(), spec=spec())
    for _ in range(2):
        assert (await a.api.start_guest(caller(), spec=spec(), paused=True)).state is GuestState.PAUSED


async def test_a_suspended_guest_wakes_on_another_node_and_only_once(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    with pytest.raises(WrongState):
        await a.api.suspend_guest(caller(), spec=spec())
    await start(a.api)
    boots = a.machine.guests[UID].boots
    for _ in range(2):
        assert (await a.api.suspend_guest(caller(), spec=spec())).state is GuestState.STOPPED
    with pytest.raises(WrongState, match="suspended"):
        await a.api.start_guest(caller(), spec=spec())
    with pytest.raises(StaleRunEpoch):
        await b.api.wake_guest(caller(), spec=spec())
    await b.api.claim_run_epoch(caller(), spec=spec(2))
    with pytest.raises(StaleRunEpoch):
        await a.api.wake_guest(caller(), spec=spec())

    for _ in range(2):
        status = await b.api.wake_guest(caller(), spec=spec(2))
        assert (status.state, status.run_epoch) == (GuestState.RUNNING, 2)

    assert b.machine.guests[UID].boots == boots, "it woke, it did not boot"
    await b.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    with pytest.raises(NotFound, match="memory"):
        await b.api.wake_guest(caller(), spec=spec(2))


async def test_memory_that_is_let_go_makes_way_for_a_boot(a: AgentHost) -> None:
    await start(a.api)
    await a.api.suspend_guest(caller(), spec=spec())
    for _ in range(2):
        await a.api.discard_memory(caller(), spec=spec())
    with pytest.raises(NotFound):
        await a.api.wake_guest(caller(), spec=spec())
    assert (await a.api.start_guest(caller(), spec=spec())).state is GuestState.RUNNING
    assert a.machine.guests[UID].boots == 2


async def test_a_node_whose_deadline_has_passed_wakes_nothing(a: AgentHost) -> None:
    await start(a.api)
    await a.api.suspend_guest(caller(), spec=spec())
    a.vitals.legitimate = False
    with pytest.raises(Unavailable) as raised:
        await a.api.wake_guest(caller(), spec=spec())
    assert raised.value.specific_reason == "NODE_NOT_LEGITIMATE"
    a.vitals.legitimate = True
    assert (await a.api.wake_guest(caller(), spec=spec())).state is GuestState.RUNNING


async def test_suspending_is_given_up_for_a_newer_claim_and_with_its_caller(a: AgentHost) -> None:
    await start(a.api)
    a.slow_memory()
    suspending = asyncio.create_task(a.api.suspend_guest(caller(12), spec=spec()))
    await becomes(a, GuestState.PAUSED)
    assert (await a.api.resume_guest(caller(13), uid=UID)).state is GuestState.RUNNING
    with pytest.raises(StaleClaim):
        await suspending

    suspending = asyncio.create_task(a.api.suspend_guest(caller(13), spec=spec()))
    await becomes(a, GuestState.PAUSED)
    suspending.cancel()
    await asyncio.wait((suspending,))
    async with asyncio.timeout(_WAIT_S):
        assert (await a.api.resume_guest(caller(13), uid=UID)).state is GuestState.RUNNING
    await a.api.stop_guest(caller(13), uid=UID, grace_period_s=0)
    with pytest.raises(NotFound):
        await a.api.wake_guest(caller(13), spec=spec())


async def test_a_suspended_guest_whose_file_had_no_name_yet_is_found_by_the_next_agent(a: AgentHost) -> None:
    await start(a.api)
    file = await a.pools[0].new_memory(UID)
    await a.hypervisor.suspend(spec(), to=file)
    await a.restart()
    assert (await a.api.suspend_guest(caller(), spec=spec())).state is GuestState.STOPPED
    assert (await a.api.wake_guest(caller(), spec=spec())).state is GuestState.RUNNING


async def test_no_disk_is_changed_while_its_guest_runs(a: AgentHost) -> None:
    await start(a.api)
    changes = (a.api.replace_disk, a.api.resize_disk, a.api.revert_disk, a.api.delete_disk)
    for change in changes:
        with pytest.raises(FailedPrecondition, match="stop it first"):
            await change(caller(), spec=spec())
    source = PoolSource("host-a", a.address, "pool")
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await a.api.pull_disk(caller(), spec=spec(), source=source)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        await anext(a.api.read_disk(pool_id="pool", uid=UID, file="", offset=0))
    await a.api.confirm_disk(caller(), spec=spec())


async def test_no_disk_is_changed_by_one_whose_right_has_moved(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    await start(a.api)
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    await b.api.claim_run_epoch(caller(), spec=spec(2))
    changes = (a.api.replace_disk, a.api.resize_disk, a.api.revert_disk, a.api.drop_rescue_disk, a.api.discard_memory)
    for change in (*changes, a.api.confirm_disk, a.api.snapshot_disk, a.api.suspend_guest):
        with pytest.raises(StaleRunEpoch):
            await change(caller(), spec=spec(1))


async def test_a_rescued_guest_keeps_its_rescue_disk_while_it_runs_from_it(a: AgentHost) -> None:
    await start(a.api)
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    rescued = replace(spec(), rescue=RescueImage(DIGEST, DiskFormat.RAW))
    await a.api.create_disk(caller(), spec=rescued)
    await a.api.start_guest(caller(), spec=rescued)
    with pytest.raises(FailedPrecondition, match="rescue"):
        await a.api.drop_rescue_disk(caller(), spec=rescued)
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    await a.api.start_guest(caller(), spec=spec())
    for _ in range(2):
        await a.api.drop_rescue_disk(caller(), spec=rescued)
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING


async def test_a_snapshot_is_made_once_for_each_operation_of_a_guest_in_any_state(a: AgentHost) -> None:
    with pytest.raises(NotFound):
        await a.api.snapshot_disk(caller(), spec=spec())
    await start(a.api)
    running = await a.api.snapshot_disk(caller(), spec=spec())
    assert running.quiesced
    assert running.image.format is DiskFormat.QCOW2
    assert await a.api.snapshot_disk(caller(), spec=spec()) == running
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING
    a.machine.without_agent.add(UID)
    assert not (await a.api.snapshot_disk(caller(operation="operations/two"), spec=spec())).quiesced
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    stopped = await a.api.snapshot_disk(caller(operation="operations/three"), spec=spec())
    assert not stopped.quiesced
    content = [piece async for piece in a.api.read_image(pool_id="pool", digest=stopped.image.digest, offset=0)]
    assert sum(map(len, content)) == stopped.image.size_bytes


async def test_disks_are_replaced_resized_and_put_back(a: AgentHost) -> None:
    await start(a.api)
    await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
    larger = replace(spec(), disk_gib=2)
    for _ in range(2):
        await a.api.resize_disk(caller(operation="operations/resize"), spec=larger)
    for _ in range(2):
        await a.api.revert_disk(caller(), spec=larger)
    await a.api.resize_disk(caller(operation="operations/again"), spec=larger)
    for _ in range(2):
        await a.api.confirm_disk(caller(), spec=larger)
    with pytest.raises(FailedPrecondition):
        await a.api.resize_disk(caller(operation="operations/smaller"), spec=spec())
    for _ in range(2):
        await a.api.replace_disk(caller(operation="operations/rebuild"), spec=larger)
    assert (await a.api.start_guest(caller(), spec=larger)).state is GuestState.RUNNING


async def test_images_and_disks_are_fetched_from_another_nodes_own_pool(lab: AgentLab) -> None:
    theirs, ours = MemoryPoolContents("theirs"), MemoryPoolContents("ours")
    a, b = await lab.add("host-a", pools=[theirs]), await lab.add("host-b", pools=[ours])
    there = replace(spec(), pool_id="theirs", data_disks_gib=(1,), cloud_init=CloudInit(user_data=b"#!/bin/sh"))
    here = replace(there, pool_id="ours")
    source = PoolSource("host-a", a.address, "theirs")
    await a.api.store_image(
        pool_id="theirs", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), chunks=_whole()
    )
    await a.api.create_disk(caller(), spec=there)
    a.reachable = False
    with pytest.raises(AgentUnavailable):
        await b.api.fetch_image(
            pool_id="ours", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), source=source
        )
    a.reachable = True
    for _ in range(2):
        image = await b.api.fetch_image(
            pool_id="ours", digest=DIGEST, format=DiskFormat.RAW, size_bytes=len(IMAGE), source=source
        )
        assert (image.digest, image.size_bytes) == (DIGEST, len(IMAGE))
        await b.api.pull_disk(caller(), spec=here, source=source)
    await b.api.claim_run_epoch(caller(), spec=here)
    assert (await b.api.start_guest(caller(), spec=here)).state is GuestState.RUNNING


async def _whole() -> AsyncIterator[bytes]:
    yield IMAGE


async def test_an_inventory_names_all_that_is_held(a: AgentHost) -> None:
    await start(a.api, run_epoch=3)
    a.write_console(UID, b"hello")
    assert (await a.api.take_inventory()).console_logs == (), "it has just been written to"
    os.utime(a.directory / "console" / f"{UID}.log", (0, 0))
    inventory = await a.api.take_inventory()
    (pool,) = inventory.pools
    assert pool.pool_id == "pool"
    assert [(image.digest, image.users) for image in pool.images] == [(DIGEST, (UID,))]
    (held,) = pool.guests
    assert (held.uid, held.run_epoch, held.node) == (UID, 3, "host-a")
    assert held.files
    assert [guest.uid for guest in inventory.guests] == [UID]
    assert inventory.console_logs == (UID,)


class Keyboard:
    """What is typed on a console."""

    def __init__(self) -> None:
        self._keys: asyncio.Queue[bytes] = asyncio.Queue()

    def type(self, data: bytes) -> None:
        self._keys.put_nowait(data)

    async def keys(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._keys.get()


async def test_a_console_is_one_persons_until_taken_over_and_ends_with_the_guest(a: AgentHost) -> None:
    keyboard, other = Keyboard(), Keyboard()
    with pytest.raises(NotFound):
        await anext(a.api.attach_console(uid=UID, input=keyboard.keys()))
    await start(a.api)
    async with asyncio.timeout(_WAIT_S), aclosing(a.api.attach_console(uid=UID, input=keyboard.keys())) as first:
        assert await anext(first) == b""
        keyboard.type(b"echo one\n")
        shown = b""
        while b"\none" not in shown:
            shown += await anext(first)
        with pytest.raises(FailedPrecondition) as raised:
            await anext(a.api.attach_console(uid=UID, input=other.keys()))
        assert raised.value.specific_reason == "CONSOLE_IN_USE"
        async with aclosing(a.api.attach_console(uid=UID, input=other.keys(), take_over=True)) as second:
            assert await anext(second) == b""
            with pytest.raises(FailedPrecondition) as raised:
                await _until_end(first)
            assert raised.value.specific_reason == "CONSOLE_TAKEN_OVER"
            await a.api.stop_guest(caller(), uid=UID, grace_period_s=0)
            assert b"".join([data async for data in second]) == b""
    with pytest.raises(WrongState):
        await anext(a.api.attach_console(uid=UID, input=keyboard.keys()))


async def _until_end(output: AsyncIterator[bytes]) -> None:
    async for _ in output:
        pass


async def test_who_does_not_read_a_console_holds_nobody_up(a: AgentHost) -> None:
    await start(a.api)
    keyboard = Keyboard()
    async with asyncio.timeout(_WAIT_S), aclosing(a.agent.attach_console(uid=UID, input=keyboard.keys())) as output:
        assert await anext(output) == b""
        for _ in range(40):
            keyboard.type(b"x" * 65536)
        keyboard.type(b"\necho last\n")
        shown = b""
        while b"\nlast" not in shown:
            await asyncio.sleep(0.01)
            shown += await anext(output)
    assert b"bytes were too fast" in shown
    assert len(shown) < 2 * 1024 * 1024


async def test_the_next_person_has_the_console_when_the_one_before_has_gone(a: AgentHost) -> None:
    await start(a.api)
    for _ in range(2):
        async with asyncio.timeout(_WAIT_S):
            console = a.api.attach_console(uid=UID, input=Keyboard().keys(), take_over=True)
            assert await anext(console) == b""
            await console.aclose()
