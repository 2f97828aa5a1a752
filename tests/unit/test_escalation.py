"""When a live migration goes further than copying: each line tells passes of a migration and what comes of it."""

from dataclasses import replace

import pytest

from leeward.agent.types import Escalation, MigrationLimits
from leeward_agent.escalation import MIB, Action, History, Moment, decide

RATE_MIB_S = 100


def seen(
    *stops_ms: int, first_pass_s: float = 10.0, pass_s: float = 1.0, each: int = 1, rate_mib_s: int = RATE_MIB_S
) -> History:
    """A migration that was looked at in its first pass, and `each` times in each later one.

    A stop at the beginning of those would have taken so long.
    """
    history = History()
    first = Moment(0.0, 1, 1024 * MIB, dirty_rate_bytes_s=0, throughput_bytes_s=rate_mib_s * MIB)
    history.add(first)
    for number, stop_ms in enumerate(stops_ms):
        for look in range(each):
            moment = replace(
                first,
                at_s=first_pass_s + pass_s * (number + look / each),
                iteration=number + 2,
                remaining_bytes=stop_ms * rate_mib_s * MIB // 1000 // (look + 1),
                dirty_rate_bytes_s=80 * MIB,
            )
            history.add(moment)
    return history


@pytest.mark.parametrize(
    ("history", "action"),
    [
        pytest.param(seen(), Action.COPY, id="in the first pass nothing is known"),
        pytest.param(seen(4000, 2000, 1000, 500), Action.COPY, id="it converges"),
        pytest.param(seen(4000, 4000, 4000), Action.COPY, id="two passes without progress may be chance"),
        pytest.param(seen(4000, 4000, 4000, 4000), Action.POST_COPY, id="three are not"),
        pytest.param(seen(4000, 3900, 3800, 3700), Action.POST_COPY, id="next to no progress is none"),
        pytest.param(seen(4000, 4000, 4000, 2000, 2000, 2000), Action.COPY, id="progress begins the count anew"),
        pytest.param(seen(4000, 5000, 6000, 299), Action.COPY, id="a stop within the budget is about to be made"),
        pytest.param(seen(4000, 4000, 4000, each=9), Action.COPY, id="looks within a pass do not count"),
        pytest.param(
            seen(4000, 3000, 2000, 1000, pass_s=11), Action.POST_COPY, id="more than three times the first pass"
        ),
        pytest.param(
            seen(4000, 3000, 2000, 1000, first_pass_s=0.1), Action.COPY, id="a short first pass counts as more"
        ),
        pytest.param(seen(4000, 3000, first_pass_s=90), Action.POST_COPY, id="the time allowed runs out"),
    ],
)
def test_it_goes_further_only_when_copying_on_does_not_end_it(history: History, action: Action) -> None:
    limits = MigrationLimits(max_downtime_ms=300, timeout_s=100, escalation=Escalation.POST_COPY)
    assert decide(history, limits).action is action


@pytest.mark.parametrize(
    ("escalation", "action"),
    [
        (Escalation.NONE, Action.COPY),
        (Escalation.AUTO_CONVERGE, Action.COPY),
        (Escalation.POST_COPY, Action.POST_COPY),
        (Escalation.PAUSE, Action.PAUSE),
    ],
)
def test_it_goes_as_far_as_is_allowed_and_says_why_in_figures(escalation: Escalation, action: Action) -> None:
    limits = MigrationLimits(max_downtime_ms=250, escalation=escalation)
    decision = decide(seen(4000, 4100, 4200, 4000), limits)
    assert decision.action is action
    for figure in ("80 MiB/s", "100 MiB/s", "4000 ms of 250 ms", "3 passes brought no progress"):
        assert figure in decision.words


def test_without_trouble_nothing_is_said() -> None:
    assert decide(seen(200), MigrationLimits()).words == ""


def test_a_long_migration_is_remembered_in_part_and_judged_as_a_whole() -> None:
    history = seen(*[4000 - number for number in range(500)], pass_s=0.001)
    assert len(history.passes) <= 64
    assert (history.passes[0].iteration, history.passes[-1].iteration) == (2, 501)
    assert decide(history, MigrationLimits(escalation=Escalation.PAUSE)).action is Action.PAUSE
