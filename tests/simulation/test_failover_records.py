"""What a failover leaves on record: when the node was lost, how that was proved, which guest came back where."""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from leeward import keys
from leeward_controller.domain.failover import FailoverRecord, FailoverState, GuestOutcome
from leeward_controller.domain.node import NodeCondition, ProofKind
from leeward_controller.domain.operation import DeleteArguments, OperationType
from leeward_controller.failover.keeper import MOST_RECORDS
from leeward_controller.records import FAILOVERS
from leeward_controller.services.paging import PageRequest
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import Story

S = FailoverState


def told(main: Callable[[Story], Coroutine[Any, Any, None]], **cluster: Any) -> None:
    """Run a story in a cluster of its own."""

    async def run() -> None:
        story = Story(**cluster)
        await story.begin()
        await main(story)
        story.check_settled()
        await story.end()

    run_virtually(run)


def records(story: Story) -> list[FailoverRecord]:
    return story.all_of(FAILOVERS)


async def over(story: Story, *, within_s: float = 60.0) -> FailoverRecord:
    """The only record there is, once it has ended."""
    await story.until(
        lambda: bool(records(story)) and all(r.state.ended for r in records(story)),
        within_s=within_s,
        what="the failover's record ends",
    )
    (record,) = records(story)
    return record


def test_a_power_cut_is_told_with_its_proof_its_guests_and_their_seconds() -> None:
    async def main(story: Story) -> None:
        for number in range(3):
            await story.launched(f"web-{number}", node="host-a")
        await story.launched("bystander", node="host-b")
        cut_s, cut_time = story.now_s, story.clock.now()
        await story.cluster.nodes["host-a"].power_off()
        record = await over(story)
        assert (record.node, record.state, record.measured) == ("host-a", S.RECOVERED, True)
        assert record.proof is not None
        assert record.proof.kind is ProofKind.SILENCE
        assert "storage slot silent" in record.proof.evidence
        assert (record.to_restart, record.restarted, record.failed, record.no_place) == (3, 3, 0, 0)
        assert [guest.instance.rpartition("/")[2] for guest in record.guests] == ["web-0", "web-1", "web-2"]
        lost_s = (record.begin_time - cut_time).total_seconds()
        assert 0.0 < lost_s < 7.0
        assert record.detect_s is not None
        assert record.first_restart_s is not None
        assert record.last_restart_s is not None
        assert record.total_s is not None
        assert 0.0 < record.detect_s < record.proof.seconds < record.first_restart_s <= record.last_restart_s
        assert record.last_restart_s <= record.total_s <= story.now_s - cut_s - lost_s + 0.001
        for guest in record.guests:
            assert guest.outcome is GuestOutcome.RESTARTED
            assert guest.to_node == story.instance(guest.instance.rpartition("/")[2]).node
            assert guest.begun_s is not None
            assert guest.ended_s is not None
            assert guest.restart_s is not None
            assert record.proof.seconds <= guest.begun_s < guest.ended_s <= record.last_restart_s
            assert 0.0 < guest.restart_s <= guest.ended_s - guest.begun_s
            assert guest.begin_time is not None
            assert guest.end_time is not None
            assert record.begin_time < guest.begin_time < guest.end_time
            assert guest.tries == 1
        # It stays off, and nothing more is told of it.
        await story.clock.sleep(600.0)
        assert records(story) == [record]

    told(main)


def test_who_leads_next_goes_on_with_the_record() -> None:
    async def main(story: Story) -> None:
        for number in range(4):
            await story.launched(f"web-{number}", node="host-a")
        await story.cluster.nodes["host-a"].power_off()
        await story.until(
            lambda: story.stored_keys(keys.FENCES) != [] and any(r.proof for r in records(story)),
            within_s=20.0,
            what="there is a proof, and it is on record",
        )
        leader = next(c for c in story.cluster.controllers.values() if c.core and c.core.leadership.epoch)
        (begun,) = records(story)
        assert leader.core is not None
        assert begun.controller == leader.core.controller_id
        await leader.kill()
        record = await over(story)
        assert (record.id, record.begin_time, record.proof) == (begun.id, begun.begin_time, begun.proof)
        assert (record.state, record.restarted, record.measured) == (S.RECOVERED, 4, False)
        assert record.controller != begun.controller
        assert record.last_restart_s is not None
        assert begun.proof is not None
        assert record.last_restart_s > begun.proof.seconds

    told(main)


def test_a_node_that_comes_back_in_time_has_returned() -> None:
    async def main(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        story.cluster.network.isolate("host-a")
        await story.until(
            lambda: story.condition("host-a") is NodeCondition.ISOLATED, within_s=20.0, what="it is isolated"
        )
        story.cluster.network.rejoin("host-a")
        record = await over(story)
        assert (record.state, record.proof, record.guests) == (S.RETURNED, None, ())
        assert record.total_s is not None
        assert record.total_s > 0.0

    told(main)


def test_what_finds_no_place_waits_until_there_is_one() -> None:
    async def main(story: Story) -> None:
        for name, node in (("big-a", "host-a"), ("big-b", "host-b")):
            await story.ended(await story.create(name, node=node, memory_mib=12_000))
        await story.launched("small", node="host-a")
        await story.cluster.nodes["host-a"].power_off()
        await story.until(
            lambda: [r.state for r in records(story)] == [S.WAITING], within_s=60.0, what="the record says it waits"
        )
        (record,) = records(story)
        assert (record.to_restart, record.restarted, record.no_place) == (2, 1, 1)
        (big,) = [guest for guest in record.guests if guest.instance.endswith("big-a")]
        assert (big.outcome, big.to_node) == (GuestOutcome.NO_PLACE, "")
        assert "memory" in big.error
        # Whoever asks sees it as it is now, at any controller.
        for controller in story.cluster.controllers.values():
            shown, _ = await story.services(controller).failovers.list(PageRequest(filter="node = host-a"))
            assert [(each.state, each.no_place, each.guests) for each in shown] == [(S.WAITING, 1, ())]
            (known,) = (await story.services(controller).failovers.get(record.name)).guests[:1]
            assert known.outcome is GuestOutcome.NO_PLACE
        await story.clock.sleep(120.0)
        await story.ended(await story.submit("big-b", OperationType.DELETE, DeleteArguments()))
        record = await over(story)
        assert (record.state, record.restarted, record.no_place) == (S.RECOVERED, 2, 0)
        (big,) = [guest for guest in record.guests if guest.instance.endswith("big-a")]
        assert (big.outcome, big.to_node) == (GuestOutcome.RESTARTED, "host-b")
        assert big.tries >= 2
        assert big.ended_s is not None
        assert big.ended_s > 120.0

    told(main, nodes=2)


def test_a_quick_reboot_restarts_nothing_elsewhere() -> None:
    async def main(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        await story.cluster.nodes["host-a"].power_off()
        await story.power_on("host-a")
        record = await over(story, within_s=30.0)
        assert record.state is S.REBOOTED
        assert record.proof is not None
        assert record.proof.kind is ProofKind.NEW_BOOT
        assert [(guest.outcome, guest.to_node) for guest in record.guests] == [(GuestOutcome.STAYED, "")]
        await story.until(lambda: story.unsettled() == [], within_s=30.0, what="it runs again")

    told(main)


def test_a_clock_that_is_set_spoils_no_seconds() -> None:
    async def main(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        await story.cluster.nodes["host-a"].power_off()
        await story.until(lambda: records(story) != [], within_s=20.0, what="it is on record")
        real, story.clock.now = story.clock.now, lambda: real() - timedelta(days=1)  # type: ignore[method-assign]
        record = await over(story)
        assert record.proof is not None
        assert record.last_restart_s is not None
        assert record.total_s is not None
        assert 0.0 < record.proof.seconds < record.last_restart_s < record.total_s < 20.0

    told(main)


def test_a_node_that_flaps_drives_out_no_failover_that_restarted_something() -> None:
    async def main(story: Story) -> None:
        await story.launched("web-1", node="host-a")
        await story.cluster.nodes["host-a"].power_off()
        first = await over(story)
        await story.power_on("host-a")
        for _ in range(MOST_RECORDS + 5):
            story.cluster.network.isolate("host-b")
            await story.until(
                lambda: story.condition("host-b") is NodeCondition.ISOLATED, within_s=20.0, what="it is isolated"
            )
            story.cluster.network.rejoin("host-b")
            await story.until(
                lambda: story.condition("host-b") is NodeCondition.READY, within_s=20.0, what="it is back"
            )
        kept = records(story)
        assert len(kept) == MOST_RECORDS
        assert first in kept
        assert {record.state for record in kept if record != first} <= {S.RETURNED, S.SEEKING}

    told(main)
