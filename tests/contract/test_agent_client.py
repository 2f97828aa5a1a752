"""What a controller can tell about a call to an agent that did not end well."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.contract.test_agent_api import UID, caller, migrate, start, until_migrating, until_refused
from tests.support.agents import AgentHost, AgentLab

from leeward.agent.client import connect_agent
from leeward.agent.types import GuestState, MigrationPhase
from leeward.errors import AgentIndefinite, AgentUnavailable, Draining, InvalidArgument, PermissionDenied
from leeward.identity import Role

_WAIT_S = 10.0


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[AgentLab]:
    async with AgentLab(tmp_path, transport="grpc-mtls") as made:
        yield made


@pytest.fixture
async def a(lab: AgentLab) -> AgentHost:
    return await lab.add("host-a")


async def test_an_agent_that_is_not_there_has_certainly_done_nothing() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with connect_agent("host-a", address, None) as api, asyncio.timeout(_WAIT_S):
            with pytest.raises(AgentUnavailable):
                await api.stop_guest(caller(), uid=UID, grace_period_s=0)
            with pytest.raises(AgentUnavailable):
                await api.list_guests()


async def test_another_agent_at_the_address_is_not_taken_for_the_one_asked(a: AgentHost, lab: AgentLab) -> None:
    tls = lab.ca.issue(Role.CONTROLLER, "control-1")
    async with connect_agent("host-b", a.address, tls) as api:
        with pytest.raises(AgentUnavailable):
            await api.describe_node()


async def test_only_controllers_act_on_guests(a: AgentHost, lab: AgentLab) -> None:
    for role, name in ((Role.AGENT, "host-b"), (Role.ADMIN, "admin"), (Role.CLIENT, "somebody")):
        async with connect_agent("host-a", a.address, lab.ca.issue(role, name)) as api:
            with pytest.raises(PermissionDenied):
                await api.stop_guest(caller(), uid=UID, grace_period_s=0)


async def test_an_agent_lost_in_the_middle_may_have_acted(a: AgentHost) -> None:
    await start(a.api)
    a.ignore_acpi(UID)
    stopping = asyncio.create_task(a.api.stop_guest(caller(12), uid=UID, grace_period_s=60))
    watching = asyncio.create_task(watch_on(a))
    await until_refused(a.api, caller(11))
    await a.break_off()
    with pytest.raises(AgentIndefinite):
        await stopping
    with pytest.raises(AgentUnavailable):
        await watching


async def watch_on(a: AgentHost) -> None:
    async with aclosing(a.api.watch_guests()) as changes:  # type: ignore[type-var]
        async for _ in changes:
            pass


async def test_an_agent_that_stops_says_so_and_finishes_what_it_has_begun(a: AgentHost, lab: AgentLab) -> None:
    b = await lab.add("host-b")
    await start(a.api)
    moving = asyncio.create_task(migrate(a, b))
    watching = asyncio.create_task(watch_on(a))
    await until_migrating(a.api)
    await a.drain()
    assert (await moving).phase is MigrationPhase.COMPLETED
    with pytest.raises(Draining):
        await watching
    assert (await b.api.get_guest(uid=UID)).state is GuestState.RUNNING


async def test_a_call_without_a_caller_is_refused(a: AgentHost) -> None:
    with pytest.raises(InvalidArgument, match="revision"):
        await a.api.stop_guest(caller(revision=0), uid=UID, grace_period_s=0)
