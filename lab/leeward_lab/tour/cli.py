"""The `leeward` command as its users run it: a process, its output, and its exit code."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leeward_lab.tour.untrue import Untrue

_LEEWARD = Path(sys.executable).parent / "leeward"
_LONGEST_S = 240.0


class Cli:
    """Runs the command as one identity."""

    def __init__(self, *, endpoints: Sequence[str], tls_directory: Path, environment: Mapping[str, str]) -> None:
        self._environment = {
            **environment,
            "LEEWARD_ENDPOINT": ",".join(endpoints),
            "LEEWARD_TLS_DIR": str(tls_directory),
        }

    async def __call__(self, *arguments: str, input: bytes = b"") -> str:
        """What it prints. Raises Untrue when it fails."""
        code, output, errors = await self.run(*arguments, input=input)
        if code != 0:
            raise Untrue(f"`leeward {' '.join(arguments)}` ended with {code}: {errors.strip() or output.strip()}")
        return output

    async def json(self, *arguments: str) -> Any:
        """What it prints with `-o json`."""
        return json.loads(await self(*arguments, "-o", "json"))

    async def refused(self, *arguments: str) -> str:
        """What it says when it is refused. Raises Untrue when it is not."""
        code, output, errors = await self.run(*arguments)
        if code == 0:
            raise Untrue(f"`leeward {' '.join(arguments)}` should have been refused, and was not: {output.strip()}")
        return errors

    async def run(self, *arguments: str, input: bytes = b"") -> tuple[int, str, str]:
        """Exit code, output and errors."""
        process = await asyncio.create_subprocess_exec(
            str(_LEEWARD),
            *arguments,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_LONGEST_S):
                output, errors = await process.communicate(input)
        except TimeoutError:
            raise Untrue(f"`leeward {' '.join(arguments)}` did not end within {_LONGEST_S:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")
