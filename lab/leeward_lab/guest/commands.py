"""Running the tools that build and read disks."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from leeward.errors import LeewardError


class LabError(LeewardError):
    """The laboratory could not do what was asked: a tool is missing, failed, or took too long."""

    reason = "LAB"


# mtools, and SYSLINUX's installer which calls it, stamp files with this time instead of the clock's: 1980, FAT's first.
_ENVIRONMENT = {"SOURCE_DATE_EPOCH": "315532800"}


def run_tool(command: Sequence[str | Path], *, timeout_s: float, cwd: Path | None = None) -> bytes:
    """Run a program to its end and return what it wrote to stdout; `LabError` if it fails or takes too long."""
    shown = " ".join(str(word) for word in command)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, cwd=cwd, check=False,
            env={**os.environ, **_ENVIRONMENT},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise LabError(f"cannot run {command[0]}: it is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{shown}` took longer than {timeout_s:g} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or "it printed nothing"
        raise LabError(f"`{shown}` ended with {done.returncode}: {said}")
    return done.stdout
