"""An operation's progress in words, without a screen to show them on."""

from leeward.cli.columns import operation_verb, phase_text
from leeward.cli.describe import enum_text, seconds_of
from leeward.cli.names import short
from leeward.cli.units import duration_text, size_text
from leeward.v1.operation_pb2 import InstanceMove, MigrationPhase, MigrationProgress, MovePhase, OperationMetadata


def title_of(metadata: OperationMetadata) -> str:
    """What is being done to what: `live-migrate web-1`."""
    return f"{operation_verb(metadata)} {short(metadata.instance or metadata.node)}".strip()


def step_text(metadata: OperationMetadata) -> str:
    """The step that is being taken, without figures that change all the time."""
    parts = [metadata.step]
    if phase_text(metadata) == "UNDOING":
        parts = [f"undoing, {metadata.step}" if metadata.step else "undoing"]
    if metadata.target_node:
        parts.append(f"to {short(metadata.target_node)}")
    if metadata.attempt > 1:
        parts.append(f"attempt {metadata.attempt}")
    if metadata.HasField("migration"):
        phase = enum_text(MigrationPhase.DESCRIPTOR, metadata.migration.phase).lower()
        parts += [part for part in (phase, metadata.migration.decision) if part]
    if metadata.note:
        parts.append(metadata.note)
    return ", ".join(part for part in parts if part)


def end_text(metadata: OperationMetadata) -> str:
    """How it ended and how long it took."""
    outcome = {"SUCCEEDED": "done"}.get(phase_text(metadata), phase_text(metadata).lower() or "ended")
    parts = [outcome]
    if metadata.HasField("end_time") and metadata.HasField("create_time"):
        took_s = metadata.end_time.ToNanoseconds() - metadata.create_time.ToNanoseconds()
        parts.append(f"in {duration_text(took_s / 1e9)}")
    if seconds_of(metadata.migration.downtime):
        parts.append(f"the guest stood still for {duration_text(seconds_of(metadata.migration.downtime))}")
    return ", ".join(parts).replace("done, in", "done in")


def move_text(move: InstanceMove) -> str:
    """Where one instance stands that is moved with others, without figures that change all the time.

    Empty while there is nothing to tell.
    """
    name, error = short(move.instance), f": {move.error}" if move.error else ""
    to = f" to {short(move.target_node)}" if move.target_node else ""
    attempt = f", attempt {move.attempt}" if move.attempt > 1 else ""
    match move.phase:
        case MovePhase.MOVE_PHASE_MOVING:
            return f"{name} is being moved{attempt}"
        case MovePhase.MOVE_PHASE_MOVED:
            return f"{name} moved{to}"
        case MovePhase.MOVE_PHASE_STAYS:
            return f"{name} stays{error}"
        case MovePhase.MOVE_PHASE_FAILED:
            return f"{name} could not be moved{error}"
    return f"{name} waits{error}" if error else ""


def drain_text(metadata: OperationMetadata) -> str:
    """How many of the instances are where they shall be."""
    drain = metadata.drain
    parts = [f"{drain.moved} of {len(drain.moves)} moved"]
    parts += [f"{drain.staying} stay"] if drain.staying else []
    parts += [f"{drain.failed} failed"] if drain.failed else []
    return ", ".join(parts)


def migration_text(migration: MigrationProgress) -> str:
    """The figures of a live migration that are known, in one line."""
    parts = [enum_text(MigrationPhase.DESCRIPTOR, migration.phase).lower()]
    if migration.memory_total_bytes:
        parts.append(f"{size_text(migration.memory_remaining_bytes)} of {size_text(migration.memory_total_bytes)} left")
    if migration.throughput_bytes_per_second:
        parts.append(f"{size_text(migration.throughput_bytes_per_second)}/s")
    if migration.dirty_rate_bytes_per_second:
        parts.append(f"dirtied at {size_text(migration.dirty_rate_bytes_per_second)}/s")
    if migration.iteration:
        parts.append(f"pass {migration.iteration}")
    if migration.HasField("remaining"):
        parts.append(f"{duration_text(seconds_of(migration.remaining))} to go")
    if seconds_of(migration.downtime):
        parts.append(f"stood still for {duration_text(seconds_of(migration.downtime))}")
    elif seconds_of(migration.expected_downtime):
        parts.append(f"would stand still for {duration_text(seconds_of(migration.expected_downtime))}")
    if migration.decision:
        parts.append(migration.decision)
    return " · ".join(part for part in parts if part)


def percent_of(metadata: OperationMetadata) -> float:
    """How much is done, 0 to 100: by the memory that a live migration has moved, where that tells more."""
    migration = metadata.migration
    if migration.phase == MigrationPhase.MIGRATION_PHASE_COPYING and migration.memory_total_bytes:
        moved = migration.memory_total_bytes - migration.memory_remaining_bytes
        return max(0.0, 100 * moved / migration.memory_total_bytes)
    return float(metadata.percent)
