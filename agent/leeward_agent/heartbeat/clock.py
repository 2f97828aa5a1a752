"""The clock that legitimacy is counted on."""

import time

from leeward.clock import SystemClock


class BoottimeClock(SystemClock):
    """The machine's clock whose seconds go on while the host is suspended (CLOCK_BOOTTIME), as the guard counts them.

    On CLOCK_MONOTONIC a host that slept would find its leases still good by its own count, long after the cluster gave
    it up.
    """

    def monotonic_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
