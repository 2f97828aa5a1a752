"""A fence device whose button a test presses: a `fence_*` program that asks, waits, and reports what was done."""

import asyncio
from pathlib import Path

from leeward_lab.hosts.host import Host
from leeward_lab.hosts.waiting import until

# Options come as `key=value` lines on standard input; `status` exits with 0 for on and 2 for off (FenceAgentAPI).
_PROGRAM = """#!/bin/sh
while IFS='=' read -r key value; do
    case "$key" in action) action=$value ;; plug) plug=$value ;; esac
done
case "$action" in
status) [ -e "$plug.off" ] && exit 2; exit 0 ;;
off) touch "$plug.asked"; until [ -e "$plug.off" ]; do sleep 0.02; done; exit 0 ;;
esac
echo "unknown action $action" >&2
exit 1
"""


def write_fencing(directory: Path, *, host: str) -> Path:
    """A controller's configuration in which this host, and no other, has a device in `directory`."""
    program = directory / "fence_lab"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    config = directory / "controller.toml"
    config.write_text(
        f'[fence.{host}]\nprogram = "{program}"\ntimeout_s = 20.0\noptions = {{ plug = "{directory / host}" }}\n'
    )
    return config


class FenceButton:
    """The test's side of the device."""

    def __init__(self, directory: Path, host: Host) -> None:
        self._asked = directory / f"{host.name}.asked"
        self._off = directory / f"{host.name}.off"
        self._host = host

    async def obey(self, *, within_s: float) -> None:
        """Wait until the device is asked to switch the host off, and do it. `LabError` when it is not asked."""

        async def asked() -> bool:
            return await asyncio.to_thread(self._asked.exists)

        await until(asked, what=f"the fence device of {self._host.name} being used", timeout_s=within_s)
        await self._host.power_off()
        self._off.touch()

    def release(self) -> None:
        """The host is switched on again."""
        self._asked.unlink()
        self._off.unlink()
