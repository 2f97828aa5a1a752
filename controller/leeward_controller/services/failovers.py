"""Failovers, for looking at: what became of nodes that were lost."""

from collections.abc import Callable
from dataclasses import replace

from leeward import keys, names
from leeward.clock import Clock
from leeward.errors import NotFound
from leeward_controller.domain.failover import FailoverRecord
from leeward_controller.failover.accounts import Restarts, Stopwatch, advanced, facts_of, restarts
from leeward_controller.records import FAILOVERS, Records
from leeward_controller.services.checks import Checks
from leeward_controller.services.filters import Fields, parse_filter
from leeward_controller.services.paging import Listing, PageRequest, list_page
from leeward_controller.view import ClusterView

_FIELDS: Fields[FailoverRecord] = {
    "node": lambda record: record.node,
    "state": lambda record: record.state,
    "kind": lambda record: record.kind,
    "operation": lambda record: record.operation,
    "proof_kind": lambda record: record.proof.kind if record.proof else "",
}


class FailoverService:
    """The failovers."""

    def __init__(self, *, records: Records, view: ClusterView, clock: Clock) -> None:
        self._records = records
        self._view = view
        self._clock = clock

    async def get(self, name: str) -> FailoverRecord:
        """One failover with its instances. Raises InvalidArgument, NotFound."""
        stored = await self._records.get(FAILOVERS, keys.failover(names.failover(name)))
        if stored is None:
            raise NotFound.named(name)
        return self._shown(stored.value, self._restarts())

    async def list(self, page: PageRequest) -> tuple[list[FailoverRecord], Listing[FailoverRecord]]:
        """One page of all that are kept, oldest first, without their instances. Raises InvalidArgument."""
        checks = Checks()
        page.check(checks)
        keep: Callable[[FailoverRecord], bool] = checks.parsed(
            lambda: parse_filter(page.filter, _FIELDS), lambda _: True
        )
        checks.done()
        known = self._restarts()
        listing = await list_page(self._records, FAILOVERS, page, keep=lambda record: keep(self._shown(record, known)))
        return [replace(self._shown(stored.value, known), guests=()) for stored in listing.items], listing

    def _restarts(self) -> Restarts:
        return restarts(self._view.operations.values())

    def _shown(self, record: FailoverRecord, known: Restarts) -> FailoverRecord:
        """One that goes on, with what this replica sees of its instances now. That it has ended, the leader says."""
        facts = facts_of(self._view, record.node, record.boot_id, known=known, now=self._clock.now())
        shown = advanced(record, facts, Stopwatch(record.begin_time))
        if shown.state.ended and not record.state.ended:
            return replace(shown, state=record.state, end_time=None, total_s=None)
        return shown
