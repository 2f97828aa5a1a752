"""What a failover's record says, from what is recorded of its node, its instances and what restarted them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.domain.failover import FailoverRecord, FailoverState, GuestOutcome
from leeward_controller.domain.node import FenceProof, ProofKind
from leeward_controller.domain.operation import (
    EvacuateArguments,
    Operation,
    OperationError,
    OperationPhase,
    OperationType,
    StepRecord,
    Work,
)
from leeward_controller.failover.accounts import MOST_GUESTS, Facts, Stopwatch, advanced
from leeward_controller.failover.meter import FailoverMeter

LOST = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RECORD = FailoverRecord("f1", "host-a", "boot-1", FailoverState.SEEKING, LOST, "controller")
MOST_BYTES = 1_500_000


def at(seconds: float) -> datetime:
    return LOST + timedelta(seconds=seconds)


def facts(*operations: Operation, now_s: float = 60.0) -> Facts:
    """A node that was removed after it was proved to be over."""
    proof = FenceProof("host-a", "boot-1", ProofKind.POWER_OFF, "it answered: off", at(5.0), "controller")
    return Facts(at(now_s), None, "", False, proof, (), 0, operations, False)


def restart(number: int, phase: OperationPhase = OperationPhase.SUCCEEDED, *, at_s: float = 10.0) -> Operation:
    name = f"projects/{'p' * 63}/instances/{'i' * 50}-{number:05d}"
    ended = Operation(
        id=f"{number:026d}{int(at_s)}",
        type=OperationType.EVACUATE,
        instance=name,
        instance_uid=f"{number:026d}",
        arguments=EvacuateArguments(fenced_node="host-a", fenced_boot_id="boot-1"),
        phase=phase,
        step="restart",
        requested_by="leeward:failover",
        create_time=at(at_s),
        update_time=at(at_s + 2.0),
        end_time=at(at_s + 2.0),
        work=Work(target_node="n" * 63),
        history=(StepRecord("restart", at(at_s + 1.0), 0.75, "controller", "done"),),
    )
    if phase is OperationPhase.FAILED:
        return replace(ended, error=OperationError(8, "NO_NODE_FITS", "\N{SNOWMAN}" * 5000))
    return ended


def test_a_record_of_ever_so_many_guests_stays_small_enough_to_be_kept() -> None:
    many = [restart(number, OperationPhase.FAILED) for number in range(MOST_GUESTS + 500)]
    record = advanced(RECORD, facts(*many), Stopwatch(LOST))
    assert (len(record.guests), record.guests_left_out) == (MOST_GUESTS, 500)
    assert (record.to_restart, record.no_place) == (MOST_GUESTS + 500, MOST_GUESTS + 500)
    assert len(StateCodec().encode(record, write_id="w" * 26)) < MOST_BYTES


def test_without_a_clock_that_saw_it_times_of_day_have_to_do_and_are_never_negative() -> None:
    early = replace(restart(1), create_time=at(-20.0), end_time=at(-10.0))
    record = advanced(RECORD, facts(early, restart(2)), Stopwatch(LOST))
    assert record.state is FailoverState.RECOVERED
    assert record.proof is not None
    assert (record.proof.seconds, record.total_s) == (5.0, 60.0)
    assert [(each.begun_s, each.ended_s, each.restart_s) for each in record.guests] == [
        (0.0, 0.0, 0.75),
        (10.0, 12.0, 0.75),
    ]
    assert (record.first_restart_s, record.last_restart_s) == (0.0, 12.0)


def test_a_guest_is_told_once_with_its_last_try_and_those_that_were_forgotten() -> None:
    failed = restart(1, OperationPhase.FAILED)
    saved = advanced(RECORD, replace(facts(failed), operations=(failed,)), Stopwatch(LOST))
    open_again = replace(saved, state=FailoverState.WAITING, end_time=None)
    record = advanced(open_again, facts(restart(1, at_s=30.0)), Stopwatch(LOST))
    (guest,) = record.guests
    assert (guest.outcome, guest.tries, guest.begun_s, guest.ended_s) == (GuestOutcome.RESTARTED, 2, 10.0, 32.0)
    assert guest.error == ""


def test_what_has_ended_is_summed_up() -> None:
    meter = FailoverMeter()
    record = advanced(RECORD, facts(restart(1), restart(2, OperationPhase.CANCELLED)), Stopwatch(LOST))
    meter.add(record)
    meter.add(replace(RECORD, state=FailoverState.RETURNED, end_time=at(1.0)))
    assert dict(meter.failovers) == {("POWER_OFF", "RECOVERED"): 1, ("NONE", "RETURNED"): 1}
    assert dict(meter.instances) == {"RESTARTED": 1, "CANCELLED": 1}
    assert (meter.prove.sum_s, meter.restart.sum_s) == (5.0, 12.0)
    assert dict(meter.prove.cumulative())["3.0"] == 0.0
    assert dict(meter.prove.cumulative())["5.0"] == 1.0
    assert meter.prove.cumulative()[-1] == ("+Inf", 1.0)
