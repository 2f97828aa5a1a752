"""What a laboratory's guest has written tells whether two of it ever ran at once."""

from leeward_lab.guest.record import GuestRecord, Tick


def _record(*written: tuple[int, int]) -> GuestRecord:
    """Lines in order, each with its boot and the second in which it was written."""
    ticks = tuple(Tick(boot, line, 1.0, clock_s) for line, (boot, clock_s) in enumerate(written, start=1))
    return GuestRecord(boots=max(boot for boot, _ in written), lines=len(ticks), history=ticks)


def test_boots_one_after_the_other() -> None:
    assert _record((1, 100), (1, 101), (2, 109), (2, 109), (3, 120)).overlapping() == ()


def test_an_old_boot_that_still_writes() -> None:
    found = _record((1, 100), (2, 109), (1, 110), (2, 111)).overlapping()
    assert [(tick.boot, tick.clock_s) for tick in found] == [(1, 110)]


def test_two_boots_in_one_second() -> None:
    assert [tick.boot for tick in _record((1, 100), (1, 109), (2, 109)).overlapping()] == [1]
