"""What an agent does by itself about the guests it finds on its host."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.test_agent_api import UID, caller, migrate, spec, start
from tests.support.agents import AgentLab

from leeward.agent.types import GuestState, MigrationPhase
from leeward_agent.storage.memory import PoolFault


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[AgentLab]:
    async with AgentLab(tmp_path, transport="core") as made:
        yield made


async def test_a_guest_whose_right_has_moved_is_killed_and_kept_aside(lab: AgentLab) -> None:
    a, b = await lab.add("host-a"), await lab.add("host-b")
    await start(a.api)
    await b.api.claim_run_epoch(caller(), spec=spec(2))
    await a.reconciler().once()
    assert (await a.api.get_guest(uid=UID)).state is GuestState.ABSENT
    note = json.loads((a.quarantine / f"{UID}-1.json").read_text())
    assert (note["state"], note["holder"], note["holder_epoch"]) == ("RUNNING", "host-b", 2)
    assert (a.quarantine / f"{UID}-1.xml").read_text()
    assert UID in lab.pool.disks
    assert (await b.api.start_guest(caller(), spec=spec(2))).state is GuestState.RUNNING
    await b.reconciler().once()
    assert (await b.api.get_guest(uid=UID)).state is GuestState.RUNNING


async def test_a_guest_that_has_just_arrived_is_no_leftover(lab: AgentLab) -> None:
    a, b = await lab.add("host-a"), await lab.add("host-b")
    await start(a.api)
    assert (await migrate(a, b)).phase is MigrationPhase.COMPLETED
    for host in (a, b):
        await host.reconciler().once()
    assert (await b.api.get_guest(uid=UID)).state is GuestState.RUNNING


async def test_a_guest_is_left_alone_while_nobody_can_say_whose_it_is(lab: AgentLab) -> None:
    a, b = await lab.add("host-a"), await lab.add("host-b")
    await start(a.api)
    await b.api.claim_run_epoch(caller(), spec=spec(2))
    lab.pool.faults["host-a"] = PoolFault.FAILING
    await a.reconciler().once()
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING
    lab.pool.faults["host-a"] = PoolFault.NONE
    await a.reconciler().once()
    assert (await a.api.get_guest(uid=UID)).state is GuestState.ABSENT


async def test_a_guest_paused_by_its_disk_runs_on_once_the_pool_is_back(lab: AgentLab) -> None:
    a = await lab.add("host-a")
    await start(a.api)
    a.lose_pool()
    await a.reconciler().once()
    assert (await a.api.get_guest(uid=UID)).state is GuestState.PAUSED
    a.find_pool()
    await a.reconciler().once()
    assert (await a.api.get_guest(uid=UID)).state is GuestState.RUNNING
