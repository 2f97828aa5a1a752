"""The filters of lists: terms `field = value` or `field != value` joined by AND, a subset of AIP-160."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from leeward.errors import InvalidArgument

T = TypeVar("T")

Fields = Mapping[str, Callable[[T], str]]
"""What can be filtered by: the value of each field, in words."""

_TERM = re.compile(
    r"""\s*(?P<field>[a-z_0-9]+(?:\.[^\s=!"]+)?)\s*(?P<sign>!?=)\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+))\s*"""
)
_AND = re.compile(r"AND\s")


def parse_filter(
    text: str, fields: Fields[T], *, mapping: Callable[[T], Mapping[str, str]] | None = None, prefix: str = "labels"
) -> Callable[[T], bool]:
    """Whether a record passes the filter. `mapping` are the labels that `prefix.KEY` asks for.

    Raises InvalidArgument for `filter`, telling where it cannot be read or which fields there are.
    """
    tests: list[Callable[[T], bool]] = []
    position = 0
    while text[position:].strip():
        if tests:
            joint = _AND.match(text, position)
            if joint is None:
                raise _unreadable(text, position, "AND")
            position = joint.end()
        term = _TERM.match(text, position)
        if term is None:
            raise _unreadable(text, position, "a term like state = ACTIVE")
        tests.append(_test(term, fields, mapping, prefix))
        position = term.end()
    return lambda record: all(test(record) for test in tests)


def _test(
    term: re.Match[str], fields: Fields[T], mapping: Callable[[T], Mapping[str, str]] | None, prefix: str
) -> Callable[[T], bool]:
    name, equal = term["field"], term["sign"] == "="
    wanted = term["bare"] if term["quoted"] is None else term["quoted"]
    head, _, key = name.partition(".")
    if mapping is not None and head == prefix and key:
        labels = mapping
        return lambda record: (labels(record).get(key) == wanted) is equal
    if name not in fields:
        known = [*fields, *([f"{prefix}.KEY"] if mapping is not None else [])]
        raise InvalidArgument.field("filter", f"{name!r} is not a field to filter by; there are {', '.join(known)}")
    value = fields[name]
    return lambda record: (value(record) == wanted) is equal


def _unreadable(text: str, position: int, expected: str) -> InvalidArgument:
    rest = text[position : position + 20]
    return InvalidArgument.field(
        "filter", f"cannot be read at character {position + 1} ({rest!r}): expected {expected}"
    )
