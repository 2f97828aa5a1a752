"""When backups are due, and what they are called."""

from datetime import UTC, datetime, timedelta

import pytest

from leeward import names
from leeward.errors import InvalidArgument
from leeward_controller.domain.backup import (
    BackupPolicy,
    backup_image_id,
    check_schedule,
    check_time_zone,
    last_due,
    next_due,
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def policy(schedule: str = "0 2 * * *", zone: str = "", name: str = "nightly") -> BackupPolicy:
    made = at("2030-01-01")
    return BackupPolicy(f"projects/p/backupPolicies/{name}", "u", schedule, zone, 3, (), made, made)


@pytest.mark.parametrize(
    ("schedule", "zone", "after", "due"),
    [
        ("0 2 * * *", "", "2030-01-01T01:59:59", "2030-01-01T02:00:00"),
        ("0 2 * * *", "", "2030-01-01T02:00:00", "2030-01-02T02:00:00"),
        ("0 2 * * *", "Europe/Berlin", "2030-01-01T00:59:59", "2030-01-01T01:00:00"),
        ("*/15 9-17 * * MON-FRI", "America/New_York", "2030-01-04T22:45:00", "2030-01-07T14:00:00"),
        ("0 0 29 2 *", "", "2030-01-01", "2032-02-29"),
        # Summer time leaves 02:30 out on that day; the backup is taken at the change, once.
        ("30 2 * * *", "Europe/Berlin", "2030-03-30T02:00:00", "2030-03-31T01:00:00"),
        ("30 2 * * *", "Europe/Berlin", "2030-03-31T01:00:00", "2030-04-01T00:30:00"),
        # The end of summer time has 02:30 twice; the backup is taken at the first.
        ("30 2 * * *", "Europe/Berlin", "2030-10-26T12:00:00", "2030-10-27T00:30:00"),
        ("30 2 * * *", "Europe/Berlin", "2030-10-27T00:30:00", "2030-10-28T01:30:00"),
        ("30 2 * * *", "Europe/Berlin", "2030-10-27T01:15:00", "2030-10-28T01:30:00"),
    ],
)
def test_the_next_due_time(schedule: str, zone: str, after: str, due: str) -> None:
    assert next_due(policy(schedule, zone), after=at(after)) == at(due)


@pytest.mark.parametrize(
    ("schedule", "after", "now", "due"),
    [
        ("0 2 * * *", "2030-01-01T02:00:00", "2030-01-02T01:59:59", None),
        ("0 2 * * *", "2030-01-01T02:00:00", "2030-01-02T02:00:00", "2030-01-02T02:00:00"),
        # A week without a leader is made up for once.
        ("0 2 * * *", "2030-01-01T02:00:00", "2030-01-08T12:00:00", "2030-01-08T02:00:00"),
        ("* * * * *", "2030-01-01T02:00:00", "2031-01-01T02:00:30", "2031-01-01T02:00:00"),
        ("0 0 1 1 *", "2030-01-01T02:00:00", "2035-06-01", "2035-01-01"),
        ("0 0 29 2 *", "2030-01-01", "2031-12-31", None),
    ],
)
def test_a_missed_time_is_made_up_once(schedule: str, after: str, now: str, due: str | None) -> None:
    found = last_due(policy(schedule), after=at(after), now=at(now))
    assert found == (None if due is None else at(due))
    if found is not None:
        assert last_due(policy(schedule), after=found, now=at(now)) is None


def test_whoever_wakes_up_when_told_finds_it_due() -> None:
    """The time told to wait for and the time found due agree through a year with its changes of summer time."""
    subject, now = policy("30 2 * * *", "Europe/Berlin"), at("2030-01-01")
    days = 0
    while now < at("2031-01-01"):
        due = next_due(subject, after=now)
        assert due is not None
        assert last_due(subject, after=now, now=due) == due
        assert last_due(subject, after=now, now=due - timedelta(microseconds=1)) is None
        now, days = due, days + 1
    assert days == 366


@pytest.mark.parametrize("schedule", ["", "0 2 * *", "0 2 * * * *", "60 2 * * *", "@daily", "0 0 31 2 *", "x" * 200])
def test_a_schedule_that_is_none_is_refused(schedule: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_schedule(schedule)
    assert [each.field for each in refused.value.fields] == ["schedule"]


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "../etc/passwd", "Europe", "localtime", "a\0b", "x" * 300])
def test_a_time_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(InvalidArgument):
        check_time_zone(zone)


def test_images_are_named_by_what_they_are_of() -> None:
    due = at("2030-01-02T02:00:00")
    assert backup_image_id(policy(), "projects/p/instances/web-1", due) == "web-1-nightly-20300102t020000"
    # The same plain id from other names can be told apart.
    one = (policy(name="c"), "projects/p/instances/a-b", due)
    other = (policy(name="b-c"), "projects/p/instances/a", due)
    assert backup_image_id(*one) == backup_image_id(*other)
    assert backup_image_id(*one, marked=True) != backup_image_id(*other, marked=True)
    longest = "a" + "-b" * 31
    for marked in (False, True):
        image_id = backup_image_id(policy(name=longest), f"projects/p/instances/{longest}", due, marked=marked)
        assert names.check_id(image_id, field="image") == image_id
