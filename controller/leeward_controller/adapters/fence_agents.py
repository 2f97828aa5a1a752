"""Power fencing through the standard `fence_*` programs, one a kind of BMC.

Their interface (fence-agents' FenceAgentAPI): options as `key=value` lines on standard input, `action` among them;
`status` exits with 0 when the power is on and 2 when it is off. 2 may also mean that the options were bad, so "off"
counts only when a `status` before cutting the power was understood, or when two in a row say so after an `off` that
succeeded. Secrets never stand in arguments.
"""

import asyncio
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from leeward.clock import Clock
from leeward_controller.ports import FenceOutcome

_ON, _OFF = 0, 2
_MOST_WORDS = 300
# What the programs' own logging and usage put around what they have to say.
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ \w+: ")
_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>: ")
_USAGE = "Please use '-h' for usage"


@dataclass(frozen=True, slots=True)
class FenceDevice:
    """How one node's power is cut: the program's name and its options (ip, username, password, plug, ...)."""

    program: str
    options: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 20.0


class FenceAgents:
    """A `Fence` over configured devices."""

    def __init__(self, devices: Mapping[str, FenceDevice], *, clock: Clock) -> None:
        self._devices = dict(devices)
        self._clock = clock

    def covers(self, node: str) -> bool:
        """Whether a device is configured for this node."""
        return node in self._devices

    async def power_off(self, node: str) -> FenceOutcome:
        """Cut the power and confirm it twice. A device that fails, lies or hangs gives `confirmed_off=False`."""
        device = self._devices[node]
        try:
            async with asyncio.timeout(device.timeout_s):
                return await self._power_off(device)
        except TimeoutError:
            return FenceOutcome(False, f"{device.program} did not finish within {device.timeout_s:g} s")
        except OSError as error:
            return FenceOutcome(False, f"{device.program} could not be run: {error}")

    async def _power_off(self, device: FenceDevice) -> FenceOutcome:
        before, words = await self._run(device, "status")
        if before not in (_ON, _OFF):
            hint = "are its address, options and credentials right?"
            return FenceOutcome(False, f"{device.program} status answered {before} ({hint}): {words}")
        code, words = await self._run(device, "off")
        if code != 0:
            return FenceOutcome(False, f"{device.program} off answered {code}: {words}")
        for _ in range(2):
            code, words = await self._run(device, "status")
            if code != _OFF:
                return FenceOutcome(False, f"{device.program} says off was done, but status answers {code}: {words}")
        return FenceOutcome(True, f"{device.program} switched off, and status said off twice")

    async def _run(self, device: FenceDevice, action: str) -> tuple[int, str]:
        with _in_memory({**device.options, "action": action}) as options:
            process = await asyncio.create_subprocess_exec(
                device.program,
                stdin=options,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                # Many of these programs run another (ipmitool, ssh), which would go on and hold the pipe open.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        assert process.returncode is not None
        return process.returncode, _in_words(output.decode(errors="replace"))


@contextmanager
def _in_memory(options: Mapping[str, str]) -> Iterator[int]:
    """A file descriptor to read options from, of a file that is on no disk.

    Unlike a pipe it can be left unread by a program that ends at once.
    """
    file = os.memfd_create("fence-options", os.MFD_CLOEXEC)
    try:
        os.write(file, "".join(f"{key}={value}\n" for key, value in options.items()).encode())
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _in_words(output: str) -> str:
    """What a program said, in one line; the end of it, because a failure is told last."""
    lines = (_OBJECT.sub("", _STAMP.sub("", line)).strip() for line in output.splitlines())
    return "; ".join(line for line in lines if line and line != _USAGE)[-_MOST_WORDS:]


class NoFence:
    """A `Fence` without devices."""

    def covers(self, node: str) -> bool:
        """No node is covered."""
        return False

    async def power_off(self, node: str) -> FenceOutcome:
        """Nothing to ask."""
        return FenceOutcome(False, f"no fence device is configured for nodes/{node}")
