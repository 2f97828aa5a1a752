"""Turns on a guest: who waits, who is superseded, and what ends with its caller."""

import asyncio

import pytest

from leeward.agent.types import Caller
from leeward.errors import StaleClaim
from leeward_agent.claims import MemoryClaims
from leeward_agent.turns import Turn, Turns

_WAIT_S = 5.0


def caller(revision: int) -> Caller:
    return Caller(operation="operations/one", step="step", revision=revision)


class Work:
    """Goes on until it is cancelled, and needs a moment to put things back then."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.put_back = False

    async def go_on(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.put_back = True

    async def in_turn(self, turn: Turn) -> None:
        await turn.unless_over(self.go_on())


@pytest.mark.parametrize("ends_with_caller", [False, True])
async def test_a_newer_claim_ends_work_and_gets_the_turn_when_all_is_put_back(ends_with_caller: bool) -> None:
    turns, work = Turns(MemoryClaims()), Work()
    async with asyncio.timeout(_WAIT_S):
        first = asyncio.create_task(turns.run("one", caller(1), work.in_turn, ends_with_caller=ends_with_caller))
        await work.begun.wait()

        async def look(_: Turn) -> bool:
            return work.put_back

        assert await turns.run("one", caller(2), look)
        with pytest.raises(StaleClaim):
            await first


async def test_a_call_of_an_earlier_step_that_comes_late_is_refused_and_says_why() -> None:
    turns = Turns(MemoryClaims())

    async def act(_: Turn) -> str:
        return "done"

    assert await turns.run("one", caller(7), act) == "done"
    with pytest.raises(StaleClaim, match=r"step of operations/one .* revision 6, .* overtaken by revision 7"):
        await turns.run("one", caller(6), act)
    assert await turns.run("one", caller(7), act) == "done", "a step may ask again"
    assert await turns.run("two", caller(6), act) == "done", "guests do not share their revisions"


async def test_work_that_ends_with_its_caller_makes_way_for_the_same_claim() -> None:
    turns, work = Turns(MemoryClaims()), Work()
    async with asyncio.timeout(_WAIT_S):
        first = asyncio.create_task(turns.run("one", caller(1), work.in_turn, ends_with_caller=True))
        await work.begun.wait()
        first.cancel()

        async def look(_: Turn) -> bool:
            return work.put_back

        assert await turns.run("one", caller(1), look)


async def test_other_work_goes_on_without_its_caller() -> None:
    turns, may_end, done = Turns(MemoryClaims()), asyncio.Event(), asyncio.Event()

    async def act(_: Turn) -> None:
        await may_end.wait()
        done.set()

    async with asyncio.timeout(_WAIT_S):
        first = asyncio.create_task(turns.run("one", caller(1), act))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait((first,))
        may_end.set()
        await done.wait()
