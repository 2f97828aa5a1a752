"""What a swarm has covered: counts by group and kind, of one seed or of many."""

from collections import Counter
from collections.abc import Iterable

from leeward_controller.domain.node import FenceProof
from leeward_controller.domain.operation import Operation, OperationType

Tally = Counter[tuple[str, str]]
"""How often, by group and kind."""

_FAULTS = "faults"
_TOTAL = "totals"
_PROOFS = "proofs"
_ENDS = "operations"


class Counting:
    """Counts what happens in one seed."""

    def __init__(self) -> None:
        self.tally: Tally = Counter()

    def fault(self, kind: str) -> None:
        """One of that kind has begun."""
        self.tally[_FAULTS, kind] += 1

    def total(self, what: str, number: int = 1) -> None:
        """So many more of it."""
        self.tally[_TOTAL, what] += number

    def on_record(self, before: object, after: object) -> None:
        """Called after each change of a record."""
        match before, after:
            case None, FenceProof():
                self.tally[_PROOFS, after.kind.value] += 1
            case Operation(), Operation() if after.phase.ended and not before.phase.ended:
                self.tally[_ENDS, f"{after.type} {after.phase}"] += 1
                if after.error is None and after.type is OperationType.LIVE_MIGRATE:
                    self.total("live migrations")
                elif after.error is None and after.type is OperationType.EVACUATE:
                    self.total("evacuations (failovers of one instance)")

    def on_log(self, lines: Iterable[str]) -> None:
        """What only a seed's log tells."""
        for line in lines:
            if line.endswith(" leads"):
                self.total("leader changes")
            elif "  brake: " in line:
                self.total("brakes pulled")


def told(tally: Tally) -> list[str]:
    """The counts in words, group by group."""
    lines = []
    for group in (_TOTAL, _FAULTS, _PROOFS, _ENDS):
        found = sorted((kind, number) for (of, kind), number in tally.items() if of == group)
        whole = sum(number for _, number in found)
        lines.append(f"{group}:" if group == _TOTAL else f"{group}: {whole}")
        lines += [f"  {number:8}  {kind}" for kind, number in found]
    return lines
