"""The power switch of a lab host, for people: `python -m leeward_lab.hosts.power off host-a --cluster DIRECTORY`."""

import argparse
import asyncio
import sys
from pathlib import Path

from leeward_lab.guest.commands import LabError
from leeward_lab.hosts.cluster import Cluster


def main() -> None:
    """Cut a host's power. Exits with 1 and why not."""
    parser = argparse.ArgumentParser(prog="python -m leeward_lab.hosts.power", description="A lab host's power switch.")
    parser.add_argument("action", choices=("off",))
    parser.add_argument("host")
    parser.add_argument("--cluster", type=Path, required=True, help="the cluster's directory")
    options = parser.parse_args()
    try:
        asyncio.run(_off(options.cluster, options.host))
    except LabError as error:
        sys.exit(str(error))


async def _off(directory: Path, name: str) -> None:
    cluster = Cluster.attach(directory)
    if name not in cluster.hosts:
        raise LabError(f"there is no host {name}; there are {', '.join(sorted(cluster.hosts))}")
    await cluster.hosts[name].power_off()
    print(f"{name} is off.")


if __name__ == "__main__":
    main()
