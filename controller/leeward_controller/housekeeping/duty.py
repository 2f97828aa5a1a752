"""What a duty of the leader is."""

from typing import Protocol

NEVER_S = float("inf")


class Duty(Protocol):
    """One thing that the leader sees to during its term; what it knows by heart it can also find out anew."""

    @property
    def name(self) -> str:
        """What to call it in logs."""
        ...

    def concerns(self, key: str) -> bool:
        """Whether the change of this record, which the view shows already, makes it look again. Quick; never raises."""
        ...

    async def work(self) -> float:
        """Do all that is due; returns the seconds until something is due by the clock, NEVER_S when nothing is.

        Raises LeewardError when it could not; it is then tried again after a moment.
        """
        ...
