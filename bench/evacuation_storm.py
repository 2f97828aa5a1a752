"""`python -m bench.evacuation_storm`: a host of 100 dies with 1,000 guests, in real time, in this one process.

The controller, the agents, the guards and both heartbeats are the real ones; hypervisors, pool and store are simulated,
so no etcd, no gRPC and no rights are needed, and what is measured is our own computing. `--virtual` runs the same on
virtual time, which tells how long we wait, without what the machine takes.
"""

import argparse
import asyncio
import cProfile
import pstats
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from leeward import keys
from leeward.agent.types import DiskFormat
from leeward.clock import Clock, Ids, RandomIds, SeededIds, SystemClock
from leeward.logs import set_up_logs
from leeward_controller.core import ControllerCore, Policy
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.operation import CreateArguments
from leeward_controller.operations.submit import Requester
from leeward_lab.simulated.cluster import POOL_ID, SimulatedCluster
from leeward_lab.simulated.serving import stock
from leeward_lab.virtual_time import VirtualClock, run_virtually

_WITHIN_S = 180.0
_AT_ONCE = 64
_LOOK_S = 0.05
_TINY_IMAGE = "projects/default/images/tiny"
_WANTED_S = 10.0


@dataclass(frozen=True, slots=True)
class Storm:
    """How large it is. `others` are guests that run on the other hosts, spread over them."""

    hosts: int
    guests: int
    others: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen, in seconds from the cut; `waiting_s` is TTL and what the guard may need."""

    proof_s: float
    first_s: float
    last_s: float
    waiting_s: float
    busy_s: float
    most_on_one: int

    def line(self, storm: Storm) -> str:
        """All of it in one line."""
        verdict = "held" if self.last_s <= self.waiting_s + _WANTED_S else "MISSED"
        return (
            f"storm: {storm.guests} guests of one of {storm.hosts} hosts (beside {storm.others}): proof after "
            f"{self.proof_s:.1f} s, first restarted {self.first_s:.1f} s, all {self.last_s:.1f} s; that is "
            f"{self.last_s - self.proof_s:.1f} s from the proof; TTL + guard {self.waiting_s:.1f} s + {_WANTED_S:g} s: "
            f"{verdict}; processor {self.busy_s:.1f} s from the cut; at most {self.most_on_one} restarted on one host"
        )


@asynccontextmanager
async def _cluster(storm: Storm, clock: Clock, ids: Ids) -> AsyncIterator[tuple[SimulatedCluster, ControllerCore]]:
    cluster = SimulatedCluster(
        clock=clock,
        ids=ids,
        rng=random.Random(0),
        nodes=storm.hosts,
        policy=Policy(),
        node_vcpus=512,
        node_memory_mib=2**20,
        store_delay_s=0.001,
    )
    cluster.pool.capacity_gib = 1_000_000
    await cluster.start_nodes()
    try:
        core = cluster.add_controller("control-1").start()
        ready = await core.view.wait_for(
            lambda: (
                core.runner.is_registered
                and sum(1 for each in core.view.nodes.values() if each.value.report.guard_armed) == storm.hosts
            ),
            timeout_s=60.0,
        )
        if not ready:
            raise TimeoutError("the simulated hosts were not ready within 60 s")
        await stock(cluster, core)
        yield cluster, core
    finally:
        await cluster.stop()


async def _fill(cluster: SimulatedCluster, core: ControllerCore, storm: Storm, victim: str) -> None:
    image = core.view.images[keys.image(_TINY_IMAGE)].value
    others = sorted(set(cluster.nodes) - {victim})
    gate, requester = asyncio.Semaphore(_AT_ONCE), Requester("bench", admin=True)

    async def launch(number: int, node: str) -> None:
        now = cluster.clock.now()
        instance = Instance(
            name=f"projects/default/instances/vm-{number:05}",
            uid=cluster.ids.new(),
            state=InstanceState.BUILDING,
            flavor="small",
            resources=Resources(1, 512, 1),
            image=image.name,
            image_digest=image.digest,
            image_format=DiskFormat.RAW,
            pool_id=POOL_ID,
            nics=(),
            create_time=now,
            update_time=now,
            created_by="bench",
        )
        async with gate:
            operation = await core.submitter.create(instance, CreateArguments(node=node), requester)
            key = keys.operation(operation.id)
            await core.view.wait_for(lambda: _ended(core, key), timeout_s=_WITHIN_S)

    async with asyncio.TaskGroup() as group:
        for number in range(storm.guests):
            group.create_task(launch(number, victim))
        for number in range(storm.others):
            group.create_task(launch(storm.guests + number, others[number % len(others)]))


def _ended(core: ControllerCore, key: str) -> bool:
    stored = core.view.operations.get(key)
    return stored is not None and stored.value.phase.ended


async def _run(storm: Storm, clock: Clock, ids: Ids, profile: cProfile.Profile | None) -> Outcome:
    async with _cluster(storm, clock, ids) as (cluster, core):
        victim = max(cluster.nodes)
        await _fill(cluster, core, storm, victim)
        uids = {stored.value.uid for stored in core.view.instances_on(victim)}
        if len(uids) != storm.guests:
            raise AssertionError(f"{len(uids)} of {storm.guests} guests run on the host that is to die")
        if profile is not None:
            profile.enable()
        began_s, busy_s = clock.monotonic_s(), time.process_time()
        await cluster.nodes[victim].power_off()
        proof_s = first_s = 0.0
        restarted = 0
        while restarted < storm.guests:
            await clock.sleep(_LOOK_S)
            passed_s = clock.monotonic_s() - began_s
            proved, restarted = _look(core, victim, uids)
            proof_s = proof_s or (passed_s if proved else 0.0)
            first_s = first_s or (passed_s if restarted else 0.0)
            cluster.check_parts()
            if passed_s > _WITHIN_S:
                raise TimeoutError(f"{restarted} of {storm.guests} guests were restarted within {_WITHIN_S:g} s")
        last_s = clock.monotonic_s() - began_s
        if profile is not None:
            profile.disable()
        report = core.view.nodes[keys.node(victim)].value.report
        return Outcome(
            proof_s=proof_s,
            first_s=first_s,
            last_s=last_s,
            waiting_s=report.lease_ttl_s + report.guard_delay_s,
            busy_s=time.process_time() - busy_s,
            most_on_one=_check(cluster, uids),
        )


def _look(core: ControllerCore, victim: str, uids: set[str]) -> tuple[bool, int]:
    """Whether there is a proof, and how many guests run again."""
    proved = any(key.startswith(keys.fence(victim, "")) for key in core.view.fences)
    instances = (stored.value for stored in core.view.instances.values())
    restarted = (each for each in instances if each.node != victim and not each.current_operation)
    return proved, sum(1 for each in restarted if each.uid in uids)


def _check(cluster: SimulatedCluster, uids: set[str]) -> int:
    """The most that one host has restarted. Raises AssertionError unless each guest runs exactly once."""
    count: dict[str, int] = {}
    for uid in uids:
        where = cluster.world.running_on(uid)
        if len(where) != 1:
            raise AssertionError(f"guest {uid} runs on {where}")
        count[where[0]] = count.get(where[0], 0) + 1
    return max(count.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.evacuation_storm", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--virtual", action="store_true", help="on virtual time")
    parser.add_argument("--profile", action="store_true", help="where the processor's time goes, from the cut on")
    return parser.parse_args()


def main() -> None:
    """Run it; exit status 1 when the bound is missed."""
    given = _arguments()
    set_up_logs(level="error")
    storm = Storm(given.hosts, given.guests, given.others)
    profile = cProfile.Profile() if given.profile else None
    if given.virtual:
        outcome = run_virtually(lambda: _run(storm, VirtualClock(), SeededIds(0), profile))
    else:
        outcome = asyncio.run(_run(storm, SystemClock(), RandomIds(), profile))
    print(outcome.line(storm))
    if profile is not None:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(70)
    sys.exit(0 if outcome.last_s <= outcome.waiting_s + _WANTED_S else 1)


if __name__ == "__main__":
    main()
