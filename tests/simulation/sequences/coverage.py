"""What many sequences have gone through, in one line."""

from collections import Counter
from dataclasses import dataclass, field

from leeward_controller.domain.instance import InstanceState
from leeward_controller.domain.operation import OperationPhase, OperationType

NODE_OPERATIONS = frozenset(
    {
        OperationType.DRAIN_NODE,
        OperationType.BRING_BACK,
        OperationType.DRILL_NODE,
        OperationType.FENCE_NODE,
        OperationType.REMOVE_NODE,
    }
)
INSTANCE_OPERATIONS = frozenset(OperationType) - NODE_OPERATIONS


@dataclass(slots=True)
class Coverage:
    """Counts over all sequences of a run."""

    sequences: int = 0
    virtual_s: float = 0.0
    mended: int = 0
    ends: Counter[tuple[OperationType, OperationPhase]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    states: Counter[InstanceState] = field(default_factory=Counter)

    def succeeded(self) -> set[OperationType]:
        """The types of operations that have succeeded at least once."""
        return {kind for (kind, phase), count in self.ends.items() if phase is OperationPhase.SUCCEEDED and count}

    def missing(self) -> list[str]:
        """The operations on instances that never succeeded, and the states that were never reached."""
        states = set(InstanceState) - {InstanceState.DELETED} - set(self.states)
        return sorted([*(INSTANCE_OPERATIONS - self.succeeded()), *states])

    def summary(self) -> str:
        """One line."""
        phases: Counter[OperationPhase] = Counter()
        for (_, phase), count in self.ends.items():
            phases[phase] += count
        told = ", ".join(f"{count} {phase.lower()}" for phase, count in sorted(phases.items()))
        kinds = len({kind for kind, _ in self.ends})
        failures = ", ".join(f"{count} {what}" for what, count in sorted(self.failures.items()))
        states = ", ".join(f"{state} {count}" for state, count in sorted(self.states.items()))
        return (
            f"sequences: {self.sequences} over {self.virtual_s / 3600:.1f} virtual hours; "
            f"operations: {sum(phases.values())} of {kinds} types ({told}); "
            f"refusals checked: {sum(self.refusals.values())} of {len(self.refusals)} reasons; "
            f"left on lost nodes and mended by an audit: {self.mended}; "
            f"failures injected: {sum(self.failures.values())} ({failures}); states reached: {states}"
        )

    def table(self) -> str:
        """Each operation with how it ended, and each reason for which calls were refused."""
        lines = []
        for kind in sorted({kind for kind, _ in self.ends}):
            ends = ((phase, self.ends[kind, phase]) for phase in OperationPhase if self.ends[kind, phase])
            lines.append(f"  {kind:16} " + ", ".join(f"{count} {phase.lower()}" for phase, count in ends))
        lines += [f"  refused: {reason} {count}" for reason, count in sorted(self.refusals.items())]
        return "\n".join(lines)
