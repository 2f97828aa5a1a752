"""Takes the visitor along: runs each stop, and prints one line for it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rich.console import Console

from leeward_lab.real.cluster import RealCluster
from leeward_lab.tour.cli import Cli
from leeward_lab.tour.guest import Guest
from leeward_lab.tour.untrue import Untrue


@dataclass
class Visit:
    """One stop: what it found before, and what it verified."""

    operation: str
    state_before: str = "-"
    host_before: str = "-"
    verified: str = ""


@dataclass
class Guide:
    """The cluster, the two identities, and what was seen so far."""

    cluster: RealCluster
    admin: Cli
    alice: Cli
    console: Console
    failures: list[str] = field(default_factory=list)
    visits: int = 0

    def guest(self, name: str, cli: Cli | None = None) -> Guest:
        """A guest by its name."""
        return Guest(name, cli or self.admin, self.cluster)

    def head(self) -> None:
        """The line above all others."""
        self._line("OPERATION", "FROM", "TO", "HOST", "SECONDS", "VERIFIED")

    @asynccontextmanager
    async def stop(self, operation: str, guest: Guest | None = None) -> AsyncIterator[Visit]:
        """One operation on one guest: timed, told in one line, and counted as failed when it raises Untrue."""
        visit = Visit(operation)
        if guest is not None:
            visit.state_before, visit.host_before = await guest.state(), await guest.host() or "-"
        begun_s = time.monotonic()
        self.visits += 1
        try:
            yield visit
        except (Untrue, TimeoutError) as error:
            self.failures.append(f"{operation}: {error}")
            seconds = time.monotonic() - begun_s
            self._line(operation, visit.state_before, "?", visit.host_before, f"{seconds:.1f}", f"[red]FAILED: {error}")
            return
        seconds = time.monotonic() - begun_s
        state, host = await _after(guest)
        hosts = visit.host_before if visit.host_before == host else f"{visit.host_before} -> {host}"
        self._line(operation, visit.state_before, state, hosts, f"{seconds:.1f}", visit.verified)

    def _line(self, operation: str, before: str, after: str, hosts: str, seconds: str, verified: str) -> None:
        self.console.print(f"{operation:<22}{before:<18}{after:<18}{hosts:<18}{seconds:>8}  {verified}", soft_wrap=True)


async def _after(guest: Guest | None) -> tuple[str, str]:
    """State and host now; an instance that is gone has neither."""
    if guest is None:
        return "-", "-"
    code, _, _ = await guest.cli.run("instance", "get", guest.name)
    return (await guest.state(), await guest.host() or "-") if code == 0 else ("gone", "-")


Stop = Callable[[Guide], Awaitable[None]]
