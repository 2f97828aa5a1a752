"""How long failovers took, summed up for monitoring: what this replica has seen to their end while it led."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from leeward_controller.domain.failover import FailoverRecord, GuestOutcome

BOUNDS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
NO_PROOF = "NONE"


@dataclass(slots=True)
class Histogram:
    """Counts of values by the bounds above them, the last for those beyond all bounds; and their sum, in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a value."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has it: how many are no more than each bound."""
        names = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        sums, total = [], 0
        for name, count in zip(names, list(self.counts), strict=True):
            total += count
            sums.append((name, float(total)))
        return sums


class FailoverMeter:
    """Sums over the failovers that have ended. Read from any thread, added to from the event loop alone."""

    def __init__(self) -> None:
        self.detect, self.prove, self.restart = Histogram(), Histogram(), Histogram()
        self.failovers: Counter[tuple[str, str]] = Counter()
        self.instances: Counter[str] = Counter()

    def add(self, record: FailoverRecord) -> None:
        """Count a failover that has ended."""
        proof = record.proof
        self.failovers[proof.kind.value if proof else NO_PROOF, record.state.value] += 1
        if record.detect_s is not None and proof is not None:
            self.detect.add(record.detect_s)
        if proof is not None:
            self.prove.add(proof.seconds)
        for guest in record.guests:
            self.instances[guest.outcome.value] += 1
            if guest.outcome is GuestOutcome.RESTARTED and guest.ended_s is not None:
                self.restart.add(guest.ended_s)
