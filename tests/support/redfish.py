"""A BMC that speaks Redfish: sushy-tools' emulator with its fake driver, as a process on loopback, over TLS."""

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import bcrypt
import trustme

from leeward_controller.adapters.fence_agents import FenceDevice

USER, PASSWORD = "operator", "correct horse"
SYSTEM = "c7a5fdbd-cdaf-9455-926a-d65c16db1809"
_FENCE_REDFISH = "/usr/sbin/fence_redfish"
_READY_S = 60.0

# The emulator's configuration is Python. Its fake hardware takes up to eleven seconds, by chance: here always one.
_CONFIG = """
from sushy_tools.emulator.resources.systems import fakedriver

class _Chance:
    @staticmethod
    def randint(least, most):
        return least

fakedriver.random = _Chance
{honesty}
SUSHY_EMULATOR_LISTEN_IP = "127.0.0.1"
SUSHY_EMULATOR_FAKE_DRIVER = True
SUSHY_EMULATOR_AUTH_FILE = {users!r}
SUSHY_EMULATOR_STATE_DIR = {state!r}
SUSHY_EMULATOR_FAKE_SYSTEMS = [
    {{"uuid": {system!r}, "name": "host-a", "power_state": {power!r}, "external_notifier": False, "nics": []}}
]
"""
_LIES = "fakedriver.FakeDriver.set_power_state = lambda self, identity, state: None"


class Power(StrEnum):
    """As Redfish names it."""

    ON = "On"
    OFF = "Off"


@dataclass(frozen=True, slots=True)
class Bmc:
    """Where it listens, and the certificate authority that vouches for it."""

    port: int
    authority: Path

    def device(self, *, password: str = PASSWORD, timeout_s: float = 60.0, **options: str) -> FenceDevice:
        """The settings by which a controller reaches it."""
        return redfish_device(self.port, password=password, timeout_s=timeout_s, **options)


def redfish_device(port: int, *, password: str = PASSWORD, timeout_s: float = 60.0, **options: str) -> FenceDevice:
    """`fence_redfish` for the system behind this port of loopback."""
    usual = {"ip": "127.0.0.1", "ipport": str(port), "username": USER, "password": password}
    uri = {"systems_uri": f"/redfish/v1/Systems/{SYSTEM}"}
    return FenceDevice(_FENCE_REDFISH, usual | uri | options, timeout_s)


@asynccontextmanager
async def redfish(directory: Path, *, power: Power = Power.ON, lies: bool = False) -> AsyncIterator[Bmc]:
    """A BMC while the context is open; with `lies` it says that it switched off, and does not."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(directory / "bmc.key")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(directory / "bmc.pem", append=number > 0)
    users, state, config = directory / "users", directory / "state", directory / "emulator.conf"
    state.mkdir()
    users.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    honesty = _LIES if lies else ""
    config.write_text(
        _CONFIG.format(honesty=honesty, users=str(users), state=str(state), system=SYSTEM, power=power.value)
    )
    port = free_port()
    with (directory / "emulator.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("sushy-emulator"),
            *("--config", config, "--fake", "--interface", "127.0.0.1", "--port", str(port)),
            *("--ssl-certificate", directory / "bmc.pem", "--ssl-key", directory / "bmc.key"),
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": str(directory)},
        )
    try:
        await _until_ready(process, port, directory)
        yield Bmc(port, directory / "authority.pem")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def free_port() -> int:
    """A port of loopback where nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def _until_ready(process: asyncio.subprocess.Process, port: int, directory: Path) -> None:
    trust = ssl.create_default_context(cafile=directory / "authority.pem")
    async with asyncio.timeout(_READY_S):
        while process.returncode is None:
            with suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
                writer.close()
                with suppress(ConnectionError, ssl.SSLError):
                    await writer.wait_closed()
                return
            await asyncio.sleep(0.05)
    raise AssertionError(f"the emulator ended:\n{(directory / 'emulator.log').read_text()}")
