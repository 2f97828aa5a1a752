"""A host's namespaces: a pid 1 of its own, and inside it mounts, name, network and boot id of its own."""

import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leeward_lab.guest.commands import LabError
from leeward_lab.hosts.processes import ProcessRef, Spawned, child_of, run, spawn


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The running namespaces of a host: pid 1, and the program outside that waits for it."""

    pid1: ProcessRef
    outside: ProcessRef

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside."""
        own = ["nsenter", "--target", str(self.pid1.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        return [*own, *command]

    async def spawn(self, command: Sequence[str], *, name: str, log: Path, env: Mapping[str, str]) -> Spawned:
        """Start a program inside as an orphan of pid 1, its output appended to `log`. The pid is the machine's.

        `LabError` when it does not start. An orphan, because `nsenter` stops itself when its child is stopped, and
        pid 1 could then not end: it waits until everything inside has been reaped.
        """
        # A shell's background job ignores SIGINT and SIGQUIT, which a program would inherit.
        script = 'env --default-signal=INT,QUIT "$@" & read -r line'
        waiting, release = os.pipe()
        try:
            shell = self.enter(["sh", "-c", script, "sh", *command])
            outside = spawn(shell, name=name, log=log, env=env, dies_with_owner=True, stdin=waiting)
            try:
                process = await child_of(await child_of(outside.process))
            except LabError as error:
                raise LabError(f"{name} did not start: {outside.tail()}") from error
        finally:
            os.close(waiting)
            os.close(release)
        if not await outside.process.ended(timeout_s=5):
            raise LabError(f"the shell that started {name} did not end")
        return Spawned(name=name, process=process, log=log)

    async def power_off(self) -> None:
        """SIGKILL pid 1: the kernel kills everything inside before pid 1 itself is gone.

        Returns when all of it has ended. `LabError` if that takes more than 10 s.
        """
        await self.pid1.kill()
        if not await self.outside.ended(timeout_s=10):
            raise LabError(f"process {self.outside.pid} still waits for its pid 1")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a host needs of its own. `binds` maps a path inside to the file or directory outside that appears there."""

    hostname: str
    address: str
    binds: Mapping[str, Path]


async def start_namespaces(*, log: Path, dies_with_owner: bool) -> Namespaces:
    """Start `tini` as pid 1 of new namespaces; it reaps what is orphaned inside, as an init must."""
    command = [
        "unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
        "--propagation", "private", "--", "tini", "--", "sleep", "infinity",
    ]  # fmt: skip
    outside = spawn(command, name="namespaces", log=log, dies_with_owner=dies_with_owner)
    return Namespaces(pid1=await child_of(outside.process), outside=outside.process)


async def set_up(namespaces: Namespaces, setup: Setup) -> None:
    """Inside: bring up the network, take the name, and put the host's own files and directories in place."""
    lines = [
        f"echo {shlex.quote(setup.hostname)} >/proc/sys/kernel/hostname",
        "ip link set lo up",
        f"ip address add {setup.address}/24 dev eth0",
        "ip link set eth0 up",
        # Without this, /sys would show the network devices of the machine.
        "mount -t sysfs sysfs /sys",
    ]
    for inside, outside in setup.binds.items():
        lines.append(f"mount --bind {shlex.quote(str(outside))} {shlex.quote(inside)}")
    await run(namespaces.enter(["sh", "-e", "-c", "\n".join(lines)]))


def new_boot_id() -> str:
    """A boot id as the kernel writes one; the real one is shared by all namespaces."""
    return f"{uuid.uuid4()}\n"
