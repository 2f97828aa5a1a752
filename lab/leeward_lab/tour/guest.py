"""One guest of the tour, seen from three sides: the API, its console, and the machine's processes and disks."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from leeward_lab.guest.record import GuestRecord, Tick, boots_in, read_guest_record, ticks_in
from leeward_lab.real.cluster import RealCluster
from leeward_lab.tour.cli import Cli
from leeward_lab.tour.untrue import Untrue, check

T = TypeVar("T")

BOOT_S = 90.0
_POLL_S = 0.25
_LIST_COMMANDS = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null"


@dataclass
class Guest:
    """An instance by its short name."""

    name: str
    cli: Cli
    cluster: RealCluster

    async def record(self) -> Any:
        """The instance as the API answers it."""
        return await self.cli.json("instance", "get", self.name)

    async def state(self) -> str:
        """Its state, as a word."""
        return str((await self.record())["state"]).removeprefix("STATE_")

    async def host(self) -> str:
        """The host it is on; empty when on none."""
        return str((await self.record()).get("node", "")).removeprefix("nodes/")

    async def console(self) -> str:
        """All that it wrote to its console."""
        return await self.cli("instance", "console-log", self.name)

    async def ticks(self) -> list[Tick]:
        """The lines it acknowledged."""
        return ticks_in(await self.console())

    async def boots(self) -> int:
        """How often its console has seen it boot."""
        return len(boots_in(await self.console()))

    async def until_writing(self, *, after_line: int = 0, boot: int = 0) -> Tick:
        """Wait for a line beyond that one, of that boot or a later one."""

        async def line() -> Tick | None:
            ticks = await self.ticks()
            found = bool(ticks) and ticks[-1].line > after_line and ticks[-1].boot >= boot
            return ticks[-1] if found else None

        return await self._until(line, what=f"a line beyond {after_line} of boot {boot} or later")

    async def until_booted_again(self, boots: int) -> Tick:
        """Wait until its console shows more boots than that, and a line since the last of them."""

        async def line() -> Tick | None:
            text = await self.console()
            if len(boots_in(text)) <= boots:
                return None
            since = ticks_in(text[text.rfind("leeward-guest: boot ") :])
            return since[-1] if since else None

        return await self._until(line, what=f"a boot more than {boots}")

    async def until_console(self, told: Callable[[str], bool], *, what: str) -> str:
        """Wait until its console tells something."""

        async def text() -> str | None:
            found = await self.console()
            return found if told(found) else None

        return await self._until(text, what=what)

    async def _until(self, look: Callable[[], Awaitable[T | None]], *, what: str) -> T:
        deadline_s = time.monotonic() + BOOT_S
        while time.monotonic() < deadline_s:
            if (found := await look()) is not None:
                return found
            await asyncio.sleep(_POLL_S)
        raise Untrue(f"{self.name} should have come to {what} within {BOOT_S:g} s")

    async def processes(self) -> list[tuple[str, str]]:
        """Host and command line of every QEMU process that has its disk."""
        uid, found = (await self.record())["uid"], []
        for name in self.cluster.shape.host_names:
            host = self.cluster.host(name)
            if host.running:
                listed = await host.run(["sh", "-c", _LIST_COMMANDS], check=False)
                found += [(name, line) for line in listed.stdout.splitlines() if "qemu-system" in line and uid in line]
        return found

    async def check_runs_on(self, host: str) -> str:
        """Raises Untrue unless it runs there, once, and is recorded there. Answers its command line."""
        processes = await self.processes()
        check([name for name, _ in processes] == [host], f"{self.name} should run once, on {host}: {processes}")
        check(await self.host() == host, f"{self.name} should be recorded on {host}")
        return processes[0][1]

    async def check_runs_nowhere(self) -> None:
        """Raises Untrue when there is a process of it."""
        check(not await self.processes(), f"{self.name} should have no process")

    async def disk(self) -> Path:
        """Its root disk."""
        record = await self.record()
        uid, host = str(record["uid"]), str(record.get("node", "")).removeprefix("nodes/")
        shared = self.cluster.lab.pool / "instances" / uid / "root.qcow2"
        return shared if shared.exists() else self.cluster.local_pool(host) / "instances" / uid / "root.qcow2"

    async def disk_record(self) -> GuestRecord:
        """What it wrote to its disk."""
        return await asyncio.to_thread(read_guest_record, await self.disk())
