"""Asks the agents that are alive what they see of the storage heartbeats of those that are not."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from leeward.agent.types import SlotObservation
from leeward.clock import Clock
from leeward.errors import LeewardError
from leeward_controller.failover.model import Silence
from leeward_controller.ports import Agents
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_OBSERVERS = 3
_ASK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Seen:
    observer: str
    observation: SlotObservation


class SlotObservers:
    """Gathers observations; asks only while somebody is missing."""

    def __init__(self, *, view: ClusterView, agents: Agents, clock: Clock) -> None:
        self._view = view
        self._agents = agents
        self._clock = clock

    async def silences(self, missing: frozenset[str]) -> dict[str, Silence]:
        """For each missing node: the shortest silence that any observer tells of any pool it shares with others.

        Its guests are legitimate while its slot beats in *one* shared pool, so a node is left out unless somebody could
        tell of each of them. A silence was true when the observer answered, and has only grown since, so it is never
        overstated.
        """
        shared = {node: self._shared_pools(node) for node in missing}
        observers = self._choose_observers(frozenset().union(*shared.values()))
        answers = await asyncio.gather(*(self._ask(observer) for observer in observers))
        seen = [one for answer in answers for one in answer]
        judged = ((node, _shortest(seen, node, pools)) for node, pools in shared.items())
        return {node: silence for node, silence in judged if silence is not None}

    def _shared_pools(self, node_id: str) -> frozenset[str]:
        own: frozenset[str] = frozenset()
        others: frozenset[str] = frozenset()
        for stored in self._view.nodes.values():
            pools = frozenset(pool.pool_id for pool in stored.value.report.pools)
            if stored.value.node == node_id:
                own = pools
            else:
                others |= pools
        return own & others

    def _choose_observers(self, pools: frozenset[str]) -> list[str]:
        """A few for each pool, so that one that answers late or not at all does not hold up the judgement."""
        chosen: dict[str, None] = {}
        for pool_id in sorted(pools):
            able = [
                node_id
                for node_id, lease in sorted(self._view.leases.items())
                if any(pool.healthy and pool.pool_id == pool_id for pool in lease.report.pools)
            ]
            chosen.update(dict.fromkeys(able[:_OBSERVERS]))
        return list(chosen)

    async def _ask(self, observer: str) -> tuple[_Seen, ...]:
        agent = self._agents.at(node=observer, address=self._view.leases[observer].report.address)
        try:
            async with asyncio.timeout(_ASK_S):
                observations = await agent.observe_slots()
        except (LeewardError, TimeoutError) as error:
            # Other observers answer for it; with none, there is no silence to judge from.
            log.info("failover.observer_failed", observer=observer, error=str(error))
            return ()
        return tuple(_Seen(observer, observation) for observation in observations)


def _shortest(seen: Iterable[_Seen], node: str, pools: frozenset[str]) -> Silence | None:
    mine = [one for one in seen if one.observation.node == node and one.observation.pool_id in pools]
    if not mine or {one.observation.pool_id for one in mine} != pools:
        return None
    least = min(mine, key=lambda one: one.observation.silent_s)
    observers = tuple(sorted({one.observer for one in mine}))
    acknowledged = frozenset(one.observation.acknowledged for one in mine if one.observation.acknowledged)
    return Silence(least.observation.silent_s, least.observation.boot_id, observers, acknowledged)
