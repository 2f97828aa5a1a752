"""`leeward failover` and `leeward node leftovers` as operators run them, against the API of a simulated cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.contract.test_cli_api import Done, Shell
from tests.support.public import WAIT_S, Face, PublicLab, add_flavor

from leeward.cli.exit_codes import ExitCode
from leeward_controller.core import Policy
from leeward_controller.failover.headroom import HeadroomPolicy, HeadroomRule


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PublicLab]:
    async with PublicLab(files=tmp_path, nodes=3) as started:
        yield started


@pytest.fixture
async def face(lab: PublicLab) -> Face:
    face = await lab.add_controller()
    await add_flavor(face)
    await face.upload()
    return face


@pytest.fixture
def leeward(face: Face, tmp_path: Path) -> Shell:
    return Shell(face, home=tmp_path / "home")


async def shown(ask: Callable[[], Awaitable[Done]], text: str) -> Done:
    """The first answer in which `text` is."""
    async with asyncio.timeout(2 * WAIT_S):
        while text not in (done := await ask()).out:  # noqa: ASYNC110 - what is waited for is behind the API.
            await asyncio.sleep(0.05)
    return done


async def test_failover_is_held_for_a_reason_and_let_go(leeward: Shell) -> None:
    armed = await leeward("failover", "status")
    assert armed.code == 0
    assert [line.split(":")[0] for line in armed.out.splitlines()] == ["failover", "brake", "leader"]
    assert "armed" in armed.out
    assert "not pulled" in armed.out

    missing, long, checked = await asyncio.gather(
        leeward("failover", "disarm", "--for", "1h"),
        leeward("failover", "disarm", "--for", "25h", "--reason", "holidays"),
        leeward("failover", "disarm", "--for", "1h", "--reason", "switches", "--validate-only"),
    )
    assert (missing.code, long.code, checked.code) == (ExitCode.USAGE, ExitCode.USAGE, 0)
    assert "is not from 60 to 86400 s" in long.err
    disarmed = await leeward("failover", "disarm", "--for", "2h", "--reason", "switches are replaced")
    assert disarmed.code == 0
    assert "admin:tester: switches are replaced" in disarmed.out
    status, listed = await asyncio.gather(leeward("failover", "status", "-o", "json"), leeward("node", "list"))
    assert status.code == 1
    assert '"armed": false' in status.out
    assert "Failover is disarmed until" in listed.err
    assert (await leeward("failover", "arm")).out.startswith("failover: armed")
    assert "disarmed" not in (await leeward("node", "list")).err
    refused = await leeward("failover", "release-brake", "--reason", "why not", "--yes")
    assert "the brake is not pulled" in refused.err


async def test_leftovers_are_shown_before_a_host_is_released(lab: PublicLab, leeward: Shell) -> None:
    made = await leeward(
        "instance", "create", "web-1", "--project", "p", "--image", "debian", "--flavor", "small", "--node", "host-a"
    )
    assert made.code == 0, made
    await lab.cluster.nodes["host-a"].power_off()
    await shown(lambda: leeward("node", "get", "host-a"), "EVACUATED")
    await lab.cluster.nodes["host-a"].power_on()
    await shown(lambda: leeward("node", "get", "host-a"), "QUARANTINED")
    left = await shown(lambda: leeward("node", "leftovers", "host-a"), "web-1")
    assert left.out.splitlines()[0].split()[:2] == ["INSTANCE", "LEFT"]
    assert "leeward node uncordon host-a" in left.err
    released = await leeward("node", "uncordon", "host-a")
    assert released.code == 0
    assert "projects/p/instances/web-1:" in released.err
    assert "READY" in released.out


async def test_who_leaves_too_little_room_for_a_loss_is_warned(tmp_path: Path) -> None:
    async with PublicLab(files=tmp_path, nodes=2, policy=Policy(headroom=HeadroomPolicy(HeadroomRule.WARN))) as lab:
        face = await lab.add_controller()
        await add_flavor(face, "large", memory_mib=10240)
        await face.upload()
        leeward = Shell(face, home=tmp_path / "home")
        launch = ("--project", "p", "instance", "create", "--image", "debian", "--flavor", "large")
        first = await leeward(*launch, "web-1", "--node", "host-a")
        assert (first.code, "Warning" in first.err) == (0, False)
        checked = await leeward(*launch, "web-2", "--node", "host-b", "--validate-only")
        second = await leeward(*launch, "web-2", "--node", "host-b")
        for warned in (checked, second):
            assert warned.code == 0
            assert "Warning: projects/p/instances/web-2 would leave too little room" in warned.err
            assert "nodes/host-a: " in warned.err
