"""Until when a node's guests may run. Pure arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Legitimacy:
    """The span in which the node is known to be alive to the others, without a gap.

    It is the node's and not a pool's: the etcd lease and the slot in every shared pool each carry it, and the latest of
    them counts. Others may therefore conclude that it has ended only when they have seen *all* of them silent: the
    lease gone, and the slots in all shared pools that the node last reported.
    """

    since_s: float
    until_s: float

    def holds_at(self, now_s: float) -> bool:
        """Whether guests may run at that moment."""
        return now_s < self.until_s


def renewed(before: Legitimacy | None, *, sent_s: float, ttl_s: float) -> Legitimacy:
    """After a heartbeat that succeeded.

    It counts from the moment it was sent: the others cannot have seen it earlier, so they count from later on. One that
    was sent after the span had ended begins a new span.
    """
    until_s = sent_s + ttl_s
    if before is None or sent_s > before.until_s:
        return Legitimacy(since_s=sent_s, until_s=until_s)
    return Legitimacy(since_s=before.since_s, until_s=max(before.until_s, until_s))
