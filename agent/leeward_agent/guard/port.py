"""What the agent asks of its guard. Implemented over a socket and by a simulation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """How things stand at the guard, on the clock that the agent vouches by.

    `delay_s` bounds how long after `deadline_s` the guard needs until no guest on a shared pool is left. `clear` says
    that it has passed and that none is left; one that comes up later is killed, too.
    """

    armed: bool
    expired: bool
    deadline_s: float
    ttl_s: float
    delay_s: float
    clear: bool = False


@dataclass(frozen=True, slots=True)
class Vouch:
    """The agent vouches for its guests until `deadline_s`, without a gap since `since_s`.

    `roots` are where the shared pools are mounted. `ttl_s` is how long one renewal vouches at most, as the agent has
    told the cluster.
    """

    since_s: float
    deadline_s: float
    ttl_s: float
    roots: tuple[Path, ...]


class GuardClient(Protocol):
    """The guard of this host. All methods raise Unavailable within a bounded time when it does not answer."""

    async def arm(self, vouch: Vouch) -> GuardStatus:
        """Vouch for the guests; when answered, the guard watches. A deadline never moves back, roots are only added.

        When nobody vouched between the deadline in force and `since_s`, the guests are killed first. Raises
        InvalidArgument when the guard refuses.
        """
        ...

    async def disarm(self) -> GuardStatus:
        """Stop watching. Raises FailedPrecondition while a guest with a disk on a shared pool runs."""
        ...

    async def status(self) -> GuardStatus:
        """How things stand."""
        ...

    async def close(self) -> None:
        """Let go of the guard. It goes on watching."""
        ...
