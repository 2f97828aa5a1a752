"""Percentiles of what was timed."""

import math
import statistics
from collections.abc import Sequence

from bench.report import Result


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def add_latency(result: Result, name: str, seconds: Sequence[float]) -> None:
    """Note p50, p95 and p99 of `seconds`, in milliseconds."""
    for percent in (50, 95, 99):
        result.add(f"{name} p{percent}", 1000 * percentile(seconds, percent), "ms")
