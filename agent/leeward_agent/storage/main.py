"""`leeward-pool create DIRECTORY`: makes a directory a pool, once in its life."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from leeward.clock import RandomIds
from leeward.errors import LeewardError
from leeward_agent.storage.directory import DirectoryPool


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the new pool's id. Exits with 1 and why not: a directory that is a pool already stays what it is."""
    parser = argparse.ArgumentParser(prog="leeward-pool", description="Makes a directory a pool for disks and images.")
    parser.add_argument("action", choices=("create",))
    parser.add_argument("directory", type=Path, help="on storage that all hosts mount, at the same path on each")
    options = parser.parse_args(arguments)
    try:
        print(asyncio.run(DirectoryPool.create(options.directory, RandomIds())))
    except LeewardError as error:
        sys.exit(f"leeward-pool: {error.message}")


if __name__ == "__main__":
    main()
