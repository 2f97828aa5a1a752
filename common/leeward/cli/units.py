"""Sizes and durations as people write and read them."""

import re
from datetime import timedelta

from leeward.errors import InvalidArgument

KIB, MIB, GIB, TIB = (1024**power for power in (1, 2, 3, 4))

_SIZES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")


def parse_size(text: str, *, field: str, unit: int) -> int:
    """How many `unit` bytes a size is: `512M`, `1G`, `1.5GiB`, always in powers of 1024. Raises InvalidArgument."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not match[2]:
        raise InvalidArgument.field(field, f"{text!r} is not a size with its unit, as 512M or 1.5G")
    size = float(match[1]) * _SIZES[match[2].upper()]
    if size % unit:
        raise InvalidArgument.field(field, f"{text!r} is not a whole number of {size_text(unit).split()[1]}")
    return int(size) // unit


def parse_duration(text: str, *, field: str) -> timedelta:
    """`30s`, `500ms`, `2m`, `1h`, or plain seconds. Raises InvalidArgument."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument.field(field, f"{text!r} is not a duration, as 30s, 500ms, 2m or 1h")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


def size_text(size_bytes: float) -> str:
    """`1.5 GiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            figure = f"{size_bytes / unit:.1f}".removesuffix(".0")
            return f"{figure} {name}"
    return f"{size_bytes:.0f} B"


def duration_text(seconds: float) -> str:
    """`45 ms`, `3.2 s`, `5m 20s`, `3h 5m`, `12d 4h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if hours < 1:
        return f"{minutes}m {whole % 60}s"
    if days < 1:
        return f"{hours}h {minutes % 60}m"
    return f"{days}d {hours % 24}h"


def age_text(seconds: float) -> str:
    """How long ago, in one unit: `5s`, `12m`, `3h`, `40d`."""
    whole = max(0, int(seconds))
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "m")):
        if whole >= unit:
            return f"{whole // unit}{name}"
    return f"{whole}s"
