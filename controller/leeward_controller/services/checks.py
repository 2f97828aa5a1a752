"""Checking requests: every wrong field is told at once, by its path in the request."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from leeward.errors import Conflict, FieldViolation, InvalidArgument
from leeward_controller.domain.node_operation import DRAIN_LABEL, DrainPolicy
from leeward_controller.records import Stored

T = TypeVar("T")

MAX_LABELS = 64
MAX_LABEL_KEY_LENGTH = 63
MAX_LABEL_VALUE_LENGTH = 256

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,64}\Z")


class Checks:
    """Gathers what is wrong with a request; `done` raises it all together."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def that(self, holds: bool, field: str, description: str) -> bool:
        """Note `description` against `field` unless it holds; returns whether it does."""
        if not holds:
            self._found.append(FieldViolation(field, description))
        return holds

    def parsed(self, parse: Callable[[], T], otherwise: T) -> T:
        """What `parse` makes; where it raises InvalidArgument that is noted and `otherwise` stands in until `done`."""
        try:
            return parse()
        except InvalidArgument as error:
            self._found += error.fields
            return otherwise

    def between(self, value: float, least: float, most: float, field: str, unit: str = "") -> None:
        """Note a number that is out of bounds."""
        self.that(least <= value <= most, field, f"{_plain(value)} is not from {_plain(least)} to {_plain(most)}{unit}")

    def request_id(self, value: str, field: str = "request_id") -> None:
        """Note an idempotency key that cannot be one."""
        allowed = "1 to 64 characters of A-Z, a-z, 0-9 and '._:/-'"
        self.that(not value or bool(_REQUEST_ID.match(value)), field, f"{value!r} is not {allowed}")

    def labels(self, labels: Mapping[str, str], field: str) -> None:
        """Note labels or properties that are too many or too long."""
        self.that(len(labels) <= MAX_LABELS, field, f"has {len(labels)} entries, at most {MAX_LABELS} are allowed")
        for key, value in sorted(labels.items()):
            good = 1 <= len(key) <= MAX_LABEL_KEY_LENGTH
            self.that(good, f"{field}[{key}]", f"a key has 1 to {MAX_LABEL_KEY_LENGTH} characters, this {len(key)}")
            good = len(value) <= MAX_LABEL_VALUE_LENGTH
            self.that(
                good, f"{field}[{key}]", f"a value has at most {MAX_LABEL_VALUE_LENGTH} characters, this {len(value)}"
            )
        drain = labels.get(DRAIN_LABEL)
        allowed = ", ".join(DrainPolicy)
        self.that(drain in (None, *DrainPolicy), f"{field}[{DRAIN_LABEL}]", f"{drain!r} is not one of {allowed}")

    def done(self) -> None:
        """Raises InvalidArgument with every violation, when there are any."""
        if self._found:
            told = "; ".join(f"{each.field}: {each.description}" for each in self._found[:8])
            more = f"; and {len(self._found) - 8} more" if len(self._found) > 8 else ""
            raise InvalidArgument(told + more, fields=self._found)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def check_etag(stored: Stored[T], etag: str, *, name: str) -> None:
    """Raises Conflict when `etag` is given and is not that of the record as it is."""
    if etag and etag != stored.etag:
        error = Conflict(
            f"{name} has changed: its etag is {stored.etag} by now, not {etag}; read it again",
            reason="ETAG_MISMATCH",
            metadata={"etag": stored.etag},
            resource=name,
        )
        # The very same call can never succeed.
        error.retriable = False
        raise error
