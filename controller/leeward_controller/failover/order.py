"""In which order the instances of dead nodes are started again. Pure.

Instances of a higher priority come first: a tier may begin once all tiers above it have settled, that is, once each of
their instances was restarted (and is ready, where it says by what that is told), has failed, or has found no place.
Nothing waits for ever: a tier that has been open for `tier_wait_s` holds up nobody any more. The tiers are those of the
whole cluster, so that a database on one dead node comes before what needs it on another.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from leeward_controller.domain.instance import RestartPriority


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How fast dead nodes' instances are started again.

    `parallel_starts_per_node` bounds how many are being started on one node at a time, so that they do not slow each
    other down, and `parallel_starts` how many anywhere, so that the first are back long before the last are begun;
    `tier_wait_s` is for how long a tier holds up those below it.
    """

    parallel_starts_per_node: int = 8
    parallel_starts: int = 128
    tier_wait_s: float = 120.0


class Stage(StrEnum):
    """How far an instance of a dead node has come."""

    WAITING = "WAITING"  # It is to be restarted, and nothing was tried yet.
    UNDER_WAY = "UNDER_WAY"  # It is being restarted, for the first time.
    SETTLED = "SETTLED"  # A first attempt has ended. What failed is tried again, but nobody waits for it.


@dataclass(frozen=True, slots=True)
class Member:
    """One instance of a dead node."""

    instance: str
    priority: RestartPriority
    stage: Stage


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers that may begin, each with since when it may, and those that are not waited for any more."""

    since_s: Mapping[RestartPriority, float]
    overdue: frozenset[RestartPriority] = frozenset()

    def may_begin(self, member: Member) -> bool:
        """Whether its turn has come. One that failed before is tried again whoever waits."""
        return member.stage is Stage.SETTLED or member.priority in self.since_s


def open_tiers(
    members: Iterable[Member], *, since_s: Mapping[RestartPriority, float], now_s: float, tier_wait_s: float
) -> Tiers:
    """The tiers that may begin now; `since_s` tells of those that could before."""
    unsettled = {member.priority for member in members if member.stage is not Stage.SETTLED}
    opened: dict[RestartPriority, float] = {}
    overdue = set()
    for priority in sorted(unsettled, key=lambda each: each.tier):
        opened[priority] = since_s.get(priority, now_s)
        if now_s - opened[priority] < tier_wait_s:
            break
        overdue.add(priority)
    return Tiers(opened, frozenset(overdue))
