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
        """For each missing node that shares a pool with an observer: the shortest silence that any observer tells.

        A silence was true when the observer answered, and has only grown since, so it is never overstated. Nodes that
        nobody could tell of are left out.
        """
        observers = self._choose_observers(missing)
        answers = await asyncio.gather(*(self._ask(observer) for observer in observers))
        return _shortest((seen for answer in answers for seen in answer), missing)

    def _choose_observers(self, missing: frozenset[str]) -> list[str]:
        pools = {
            pool.pool_id
            for stored in self._view.nodes.values()
            if stored.value.node in missing
            for pool in stored.value.report.pools
        }
        able = [
            node_id
            for node_id, lease in sorted(self._view.leases.items())
            if any(pool.healthy and pool.pool_id in pools for pool in lease.report.pools)
        ]
        return able[:_OBSERVERS]

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


def _shortest(seen: Iterable[_Seen], missing: frozenset[str]) -> dict[str, Silence]:
    by_node: dict[str, list[_Seen]] = {}
    for one in seen:
        if one.observation.node in missing:
            by_node.setdefault(one.observation.node, []).append(one)
    silences = {}
    for node, all_seen in by_node.items():
        least = min(all_seen, key=lambda one: one.observation.silent_s)
        observers = tuple(sorted({one.observer for one in all_seen}))
        silences[node] = Silence(least.observation.silent_s, least.observation.boot_id, observers)
    return silences
