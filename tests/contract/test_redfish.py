"""Cutting power with the real `fence_redfish` at a real Redfish endpoint, and with programs that misbehave."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.support.redfish import PASSWORD, Power, free_port, redfish, redfish_device

from leeward.clock import SystemClock
from leeward_controller.adapters.fence_agents import FenceAgents, FenceDevice
from leeward_controller.ports import FenceOutcome

# A device that fails at once still starts a Python program, on a machine that may be busy.
QUICK_S = 20.0


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def trust(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine does whose administrator has installed the BMCs' authority."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))


async def power_off(device: FenceDevice) -> FenceOutcome:
    return await FenceAgents({"host-a": device}, clock=SystemClock()).power_off("host-a")


async def test_power_is_cut_and_confirmed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with redfish(tmp_path) as bmc:
        trust(bmc.authority, monkeypatch)
        outcome = await power_off(bmc.device())
        assert outcome.confirmed_off, outcome.evidence
        assert "off twice" in outcome.evidence
        again = await power_off(bmc.device())
        assert again.confirmed_off, again.evidence


async def test_a_host_that_is_off_already_is_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with redfish(tmp_path, power=Power.OFF) as bmc:
        trust(bmc.authority, monkeypatch)
        outcome = await power_off(bmc.device())
        assert outcome.confirmed_off, outcome.evidence


async def test_a_bmc_that_says_yes_and_does_nothing_is_not_believed(tmp_path: Path) -> None:
    async with redfish(tmp_path, lies=True) as bmc:
        outcome = await power_off(bmc.device(ssl_insecure="1", power_timeout="3"))
        assert not outcome.confirmed_off
        assert "waiting to power OFF" in outcome.evidence


@pytest.mark.parametrize("wrong", ["password", "system", "certificate"])
async def test_settings_that_are_wrong_are_told_soon(tmp_path: Path, wrong: str) -> None:
    async with redfish(tmp_path) as bmc:
        options = {} if wrong == "certificate" else {"ssl_insecure": "1"}
        if wrong == "system":
            options["systems_uri"] = "/redfish/v1/Systems/nobody"
        password = "guessed" if wrong == "password" else PASSWORD
        began_s = time.monotonic()
        outcome = await power_off(bmc.device(password=password, **options))
        assert not outcome.confirmed_off
        assert "credentials" in outcome.evidence
        assert ("certificate" in outcome.evidence) is (wrong == "certificate")
        assert "\n" not in outcome.evidence
        assert password not in outcome.evidence
        assert time.monotonic() - began_s < QUICK_S


async def test_a_bmc_that_is_not_there_fails_soon() -> None:
    began_s = time.monotonic()
    outcome = await power_off(redfish_device(free_port()))
    assert not outcome.confirmed_off
    assert "refused" in outcome.evidence
    assert time.monotonic() - began_s < QUICK_S


async def test_a_bmc_that_accepts_and_never_answers_is_given_up_in_time() -> None:
    async with silent_server() as port:
        began_s = time.monotonic()
        outcome = await power_off(redfish_device(port, timeout_s=3.0))
        assert outcome == FenceOutcome(False, "/usr/sbin/fence_redfish did not finish within 3 s")
        assert 3.0 <= time.monotonic() - began_s < 3.0 + QUICK_S


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Accepts, and says nothing."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in held:
            writer.close()


async def test_what_a_program_that_hangs_had_started_ends_with_it(tmp_path: Path) -> None:
    program, child = tmp_path / "fence_hangs", tmp_path / "child"
    program.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {child}.new; mv {child}.new {child}\nwait\n")
    program.chmod(0o755)
    outcome = await power_off(FenceDevice(str(program), {}, timeout_s=3.0))
    assert not outcome.confirmed_off
    pid = int(child.read_text())
    async with asyncio.timeout(10):
        while is_alive(pid):  # noqa: ASYNC110 - whoever adopted it sees to its end.
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param("exit 2", "off answered 2", id="always answers 2"),
        pytest.param('case "$action" in off) exit 0;; esac; exit 0', "but status answers 0", id="off is not done"),
        pytest.param("echo no such plug; exit 1", "no such plug", id="fails"),
    ],
)
async def test_programs_that_do_not_confirm_are_not_believed(tmp_path: Path, script: str, words: str) -> None:
    program = tmp_path / "fence_odd"
    read = "while IFS='=' read -r key value; do case \"$key\" in action) action=$value;; esac; done"
    program.write_text(f"#!/bin/sh\n{read}\n{script}\n")
    program.chmod(0o755)
    outcome = await power_off(FenceDevice(str(program), {"plug": "1"}))
    assert not outcome.confirmed_off
    assert words in outcome.evidence


async def test_a_program_that_is_missing_is_told(tmp_path: Path) -> None:
    outcome = await power_off(FenceDevice(str(tmp_path / "fence_none"), {}))
    assert not outcome.confirmed_off
    assert "could not be run" in outcome.evidence


async def test_secrets_are_not_in_arguments(tmp_path: Path) -> None:
    program, seen = tmp_path / "fence_tells", tmp_path / "seen"
    program.write_text(f"#!{sys.executable}\nimport sys\nopen({str(seen)!r}, 'a').write(repr(sys.argv))\nsys.exit(1)\n")
    program.chmod(0o755)
    await power_off(FenceDevice(str(program), {"password": "hush"}))
    assert "hush" not in seen.read_text()
    assert os.fspath(program) in seen.read_text()


async def test_calls_under_way_do_not_disturb_it(tmp_path: Path) -> None:
    """In a process of its own, as a controller is: what others have imported before decides what happens at a fork."""
    program = "tests.support.fencing_beside_calls"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", program, str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60.0):
        told, trouble = await process.communicate()
    assert (process.returncode, told.decode()) == (0, ""), trouble.decode()
