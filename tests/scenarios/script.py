"""The language of `commands` files: one command a line, `#` begins a comment. README.md here lists all of them."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

_AT = re.compile(r"at (?P<at>\d+(?:\.\d+)?) (?P<rest>.+)")

T = TypeVar("T")
Act = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Line:
    """One command: its place in the file, when it is due (None: after the one before), and its words."""

    number: int
    at_s: float | None
    words: str


class BadScript(Exception):
    """A line that is no command."""


def read_script(text: str) -> list[Line]:
    """The commands of a file, in order."""
    lines = []
    for number, raw in enumerate(text.splitlines(), start=1):
        words = " ".join(raw.partition("#")[0].split())
        if not words:
            continue
        timed = _AT.fullmatch(words)
        at_s = float(timed["at"]) if timed else None
        lines.append(Line(number, at_s, timed["rest"] if timed else words))
    return lines


def verb(form: str) -> Callable[[T], T]:
    """Marks a method as what a command of this form does. `{name}` in the form stands for one word, `{name:a|b}` for
    one of these, and what is in square brackets may be left out.
    """

    def mark(method: T) -> T:
        forms: list[re.Pattern[str]] = getattr(method, "forms", [])
        method.forms = [*forms, re.compile(_pattern(form))]  # type: ignore[attr-defined]
        return method

    return mark


def find_verb(book: object, line: Line) -> tuple[Act, dict[str, str]]:
    """The method of `book` for a line, and its arguments. Raises BadScript."""
    for name in dir(type(book)):
        for form in getattr(getattr(type(book), name), "forms", []):
            if match := form.fullmatch(line.words):
                return getattr(book, name), {key: value or "" for key, value in match.groupdict().items()}
    raise BadScript(f"line {line.number}: {line.words!r} is no command")


def _pattern(form: str) -> str:
    parts = re.split(r"(\{[^}]*\})", form)
    return "".join(_placeholder(part) if part.startswith("{") else _optional(part) for part in parts)


def _optional(part: str) -> str:
    return part.replace("[", "(?:").replace("]", ")?")


def _placeholder(part: str) -> str:
    name, _, pattern = part.strip("{}").partition(":")
    return f"(?P<{name}>{pattern or '[^ ]+'})"
