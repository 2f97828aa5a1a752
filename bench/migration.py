"""placeholder"""

from pathlib import Path

from bench.report import Result

PAIRS = 9


async def measure(directory: Path, *, pairs: int) -> Result:
    raise AssertionError
