"""Keeps a record of each failover: a duty of the leader, beside the loop that does the work and in nobody's way.

A record is written when the node's lease is lost, when there is a proof, and when all is over; once more when some
instances have to wait. Moments are noted when the view tells of them, so writing takes nothing from what is measured.
"""

from dataclasses import replace
from datetime import timedelta

import structlog

from leeward import keys
from leeward.errors import Conflict, StoreIndefinite
from leeward_controller.domain.failover import FailoverRecord, FailoverState, GuestOutcome
from leeward_controller.domain.node import FenceProof, MovedAway, NodeCondition
from leeward_controller.domain.operation import Operation, OperationType
from leeward_controller.failover import accounts
from leeward_controller.failover.accounts import Facts, Restarts, Stopwatch, advanced, facts_of, restarts
from leeward_controller.failover.drills import drill_record
from leeward_controller.failover.meter import FailoverMeter
from leeward_controller.failover.moments import Moments
from leeward_controller.housekeeping.duty import NEVER_S
from leeward_controller.operations.context import Surroundings
from leeward_controller.records import FAILOVERS, Commit, Stored

log = structlog.get_logger()

MOST_RECORDS = 100
_READ_AT_ONCE = 20
_LOOK_S = 5.0
_SAVE_WAITING_S = 30.0
_FRESH = timedelta(seconds=60)
"""A proof of a boot that its node has left behind, and a drill that has ended, are news no longer than this."""


class FailoverKeeper:
    """Keeps the records during one term of leadership; nobody else writes them."""

    name = "failover records"

    def __init__(
        self, *, surroundings: Surroundings, leader_epoch: int, controller_id: str, meter: FailoverMeter
    ) -> None:
        self._surroundings = surroundings
        self._view = surroundings.view
        self._records = surroundings.records
        self._clock = surroundings.clock
        self._leader_epoch = leader_epoch
        self._controller_id = controller_id
        self._meter = meter
        self._moments = Moments(view=self._view, clock=self._clock)
        self._kept: dict[str, Stored[FailoverRecord]] | None = None
        self._began_s: dict[str, float] = {}
        self._saved_s: dict[str, float] = {}
        self._adopted: set[str] = set()

    def concerns(self, key: str) -> bool:
        return self._moments.notice(key, is_busy=bool(self._began_s))

    async def work(self) -> float:
        """Begin and carry on what records there should be."""
        if not self._view.synced:
            return _LOOK_S
        try:
            kept = await self._all_kept()
            quiet = [stored for stored in self._open(kept) if not self._is_restarting(stored.value)]
            known = restarts(self._view.operations.values()) if quiet else {}
            for stored in quiet:
                await self._carry_on(kept, stored, known)
            await self._begin_new(kept)
            are_drills_over = await self._record_drills(kept)
        except (Conflict, StoreIndefinite):
            # What is there now has to be read again.
            self._kept = None
            raise
        if self._open(kept) or not are_drills_over:
            return _LOOK_S
        self._moments.forget()
        self._began_s.clear()
        return NEVER_S

    def _open(self, kept: dict[str, Stored[FailoverRecord]]) -> list[Stored[FailoverRecord]]:
        return [stored for stored in kept.values() if not stored.value.state.ended]

    async def _all_kept(self) -> dict[str, Stored[FailoverRecord]]:
        """What this leader knows to be stored, by key; read once, since nobody else writes it."""
        if self._kept is None:
            found: dict[str, Stored[FailoverRecord]] = {}
            last, more = "", True
            while more:
                page = await self._records.list(FAILOVERS, limit=_READ_AT_ONCE, start_after=last)
                found |= {stored.key: stored for stored in page.items}
                last, more = (page.items[-1].key if page.items else ""), page.more
            self._kept = found
            for stored in self._open(found):
                self._adopt(stored)
        return self._kept

    def _adopt(self, stored: Stored[FailoverRecord]) -> None:
        """Go on with a record of an earlier leader: its beginning is known by the time of day alone."""
        if stored.key in self._began_s:
            return
        self._adopted.add(stored.key)
        past_s = (self._clock.now() - stored.value.begin_time).total_seconds()
        self._began_s[stored.key] = self._clock.monotonic_s() - max(0.0, past_s)

    async def _begin_new(self, kept: dict[str, Stored[FailoverRecord]]) -> None:
        known = {(each.value.node, each.value.boot_id) for each in self._open(kept)}
        for stored in list(self._view.nodes.values()):
            node = stored.value
            boot = (node.node, node.report.boot_id)
            is_lost = node.node not in self._view.leases and node.condition is not NodeCondition.EVACUATED
            if is_lost and boot not in known and keys.fence(*boot) not in self._view.fences:
                known.add(boot)
                await self._begin(kept, *boot)
        told = {(each.value.node, each.value.boot_id) for each in kept.values() if each.value.proof} | known
        for proof in [each.value for each in self._view.fences.values()]:
            if (proof.node, proof.boot_id) not in told and self._is_news(proof):
                await self._begin(kept, proof.node, proof.boot_id)

    def _is_news(self, proof: FenceProof) -> bool:
        """Whether a proof without a record is of something that goes on, rather than one that was left behind."""
        stored = self._view.nodes.get(keys.node(proof.node))
        if stored is None or stored.value.condition is NodeCondition.EVACUATED:
            return False
        return stored.value.report.boot_id == proof.boot_id or self._clock.now() - proof.time < _FRESH

    async def _begin(self, kept: dict[str, Stored[FailoverRecord]], node_id: str, boot_id: str) -> None:
        commit = Commit().alive(keys.LEADER, self._leader_epoch)
        dropped = self._dropped(kept)
        if len(kept) - len(dropped) >= MOST_RECORDS:
            return
        for stored in dropped:
            commit.remove(stored)
        now_s, now = self._clock.monotonic_s(), self._clock.now()
        lost_s = self._moments.lost.get(node_id, self._moments.seen.get(keys.fence(node_id, boot_id)))
        began_s = now_s if lost_s is None else lost_s
        begin_time = now - timedelta(seconds=now_s - began_s)
        record = FailoverRecord(
            id=_unused_id(kept, f"f{begin_time:%Y%m%d-%H%M%S}"),
            node=node_id,
            boot_id=boot_id,
            state=FailoverState.SEEKING,
            begin_time=begin_time,
            controller=self._controller_id,
            measured=lost_s is not None,
        )
        key = keys.failover(record.id)
        self._began_s[key] = began_s
        known = restarts(self._view.operations.values())
        record = advanced(record, self._facts(record, known), self._watch(key, record))
        revision = await self._records.commit(commit.create(key, record))
        for stored in dropped:
            kept.pop(stored.key)
        kept[key] = Stored(key, record, revision, revision)
        log.info("failover.recording", failover=record.id, node=node_id)
        self._note_end(key, record)

    async def _record_drills(self, kept: dict[str, Stored[FailoverRecord]]) -> bool:
        """Make the records of drills that have just ended; whether none is going on."""
        operations = [stored.value for stored in list(self._view.operations.values())]
        drills = [each for each in operations if each.type is OperationType.DRILL_NODE]
        told = {each.value.operation for each in kept.values()}
        for drill in drills:
            is_news = drill.end_time is not None and self._clock.now() - drill.end_time < _FRESH
            if is_news and drill.name not in told:
                await self._record_drill(kept, drill, operations)
        return all(drill.phase.ended for drill in drills)

    async def _record_drill(
        self, kept: dict[str, Stored[FailoverRecord]], drill: Operation, operations: list[Operation]
    ) -> None:
        dropped = self._dropped(kept)
        if len(kept) - len(dropped) >= MOST_RECORDS:
            return
        commit = Commit().alive(keys.LEADER, self._leader_epoch)
        for stored in dropped:
            commit.remove(stored)
        began_s = self._moments.seen.get(accounts.begun(keys.operation(drill.id)))
        record = drill_record(
            drill,
            operations,
            Stopwatch(drill.create_time, began_s, self._moments.seen),
            failover_id=_unused_id(kept, f"f{drill.create_time:%Y%m%d-%H%M%S}"),
            controller=self._controller_id,
        )
        key = keys.failover(record.id)
        revision = await self._records.commit(commit.create(key, record))
        for stored in dropped:
            kept.pop(stored.key)
        kept[key] = Stored(key, record, revision, revision)

    def _dropped(self, kept: dict[str, Stored[FailoverRecord]]) -> list[Stored[FailoverRecord]]:
        """What makes room for one more: first the oldest of those that came to nothing, so that a node whose lease is
        lost again and again drives out nothing else. One whose proof stands is kept, else it would be told anew.
        """
        surplus = len(kept) + 1 - MOST_RECORDS
        if surplus <= 0:
            return []
        may_go = [
            each
            for each in kept.values()
            if each.value.state.ended and keys.fence(each.value.node, each.value.boot_id) not in self._view.fences
        ]
        may_go.sort(key=lambda each: (each.value.state is not FailoverState.RETURNED, each.value.begin_time))
        return may_go[:surplus]

    def _is_restarting(self, record: FailoverRecord) -> bool:
        """Whether an instance of a node with a proof is being restarted.

        Nothing is written before all those have ended, so nothing need be summed up.
        """
        under_way = restarts(self._view.unfinished.values())
        return record.proof is not None and (record.node, record.boot_id) in under_way

    async def _carry_on(
        self, kept: dict[str, Stored[FailoverRecord]], stored: Stored[FailoverRecord], known: Restarts
    ) -> None:
        old, facts = stored.value, self._facts(stored.value, known)
        new = advanced(old, facts, self._watch(stored.key, old))
        new = replace(new, controller=self._controller_id, measured=old.measured and stored.key not in self._adopted)
        if not self._is_worth_writing(stored.key, old, new):
            return
        commit = Commit().replace(stored, new).alive(keys.LEADER, self._leader_epoch)
        node = self._view.nodes.get(keys.node(new.node))
        if node is not None and (away := _restarted(new)):
            commit.replace(node, node.value.remembering(away))
        revision = await self._records.commit(commit)
        kept[stored.key] = Stored(stored.key, new, revision, stored.create_revision)
        self._saved_s[stored.key] = self._clock.monotonic_s()
        self._note_end(stored.key, new)

    def _is_worth_writing(self, key: str, old: FailoverRecord, new: FailoverRecord) -> bool:
        if new.state.ended or (old.proof is None and new.proof is not None):
            return True
        if new.state is not FailoverState.WAITING or new == old:
            return False
        return self._clock.monotonic_s() - self._saved_s.get(key, float("-inf")) >= _SAVE_WAITING_S

    def _note_end(self, key: str, record: FailoverRecord) -> None:
        if record.state.ended:
            self._began_s.pop(key, None)
            self._saved_s.pop(key, None)
            self._meter.add(record)
            log.info(
                "failover.recorded", failover=record.id, node=record.node, state=record.state, seconds=record.total_s
            )

    def _facts(self, record: FailoverRecord, known: Restarts) -> Facts:
        return facts_of(self._view, record.node, record.boot_id, known=known, now=self._clock.now())

    def _watch(self, key: str, record: FailoverRecord) -> Stopwatch:
        seen = self._moments.seen | {accounts.NOW: self._clock.monotonic_s()}
        return Stopwatch(record.begin_time, self._began_s[key], seen)


def _restarted(record: FailoverRecord) -> list[MovedAway]:
    """What can be given back to a node whose failover is over."""
    if not record.state.ended:
        return []
    return [
        MovedAway(each.instance, each.instance_uid, each.to_node)
        for each in record.guests
        if each.outcome is GuestOutcome.RESTARTED
    ]


def _unused_id(kept: dict[str, Stored[FailoverRecord]], beginning: str) -> str:
    number = 1
    while keys.failover(f"{beginning}-{number:03d}") in kept:
        number += 1
    return f"{beginning}-{number:03d}"
