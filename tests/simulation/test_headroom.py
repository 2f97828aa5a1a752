"""Keeping room for the loss of a node, as a controller sees a whole cluster."""

from dataclasses import replace

import pytest

from leeward import keys
from leeward.errors import ResourceExhausted
from leeward_controller.core import Policy
from leeward_controller.domain.catalog import Flavor
from leeward_controller.domain.instance import Resources, Storage
from leeward_controller.failover.headroom import HeadroomPolicy, HeadroomRule
from leeward_controller.records import Commit
from leeward_controller.services.creating import NewInstance
from leeward_controller.services.headroom import Headroom
from leeward_lab.simulated.cluster import POOL_ID
from leeward_lab.virtual_time import run_virtually
from tests.simulation.story import ALICE, IMAGE, Story

pytestmark = pytest.mark.timeout(60)


def test_a_launch_that_leaves_too_little_is_refused_and_told_why() -> None:
    async def main() -> None:
        # 3584 MiB of each host can be promised.
        story = Story(nodes=3, node_memory_mib=4096)
        await story.begin()
        for node in ("host-a", "host-b", "host-c"):
            ended = await story.ended(await story.create(f"on-{node}", node=node, memory_mib=2048))
            assert ended.error is None, ended.error
        core = story.core().core
        assert core is not None
        rule = HeadroomPolicy(HeadroomRule.REFUSE)
        headroom = Headroom(view=core.view, placement=core.policy.placement, policy=rule)
        # A host has 2048 MiB to be moved and the others 1536 each: no single one of them can take it.
        assert [each.node for each in headroom.shortfalls()] == ["host-a", "host-b", "host-c"]
        there = replace(
            story.instance("on-host-a"), uid="new", name="projects/p/instances/new", restart_on_failure=True
        )
        with pytest.raises(ResourceExhausted) as refused:
            headroom.check(there, node="host-b", pool_id=POOL_ID, resources=Resources(1, 1024, 1))
        assert refused.value.specific_reason == "NO_HEADROOM"
        assert [each.subject for each in refused.value.violations] == ["nodes/host-a", "nodes/host-b", "nodes/host-c"]
        assert "MiB of memory" in refused.value.message
        for lax, warnings in ((HeadroomRule.WARN, (refused.value.message,)), (HeadroomRule.OFF, ())):
            headroom = Headroom(view=core.view, placement=core.policy.placement, policy=HeadroomPolicy(lax))
            told = headroom.check(there, node="host-b", pool_id=POOL_ID, resources=Resources(1, 1024, 1))
            assert told == warnings
        await story.end()

    run_virtually(main)


def test_what_fits_is_let_in_until_it_does_not() -> None:
    async def main() -> None:
        story = Story(nodes=3, node_memory_mib=4096)
        await story.begin()
        core = story.core().core
        assert core is not None
        headroom = Headroom(view=core.view, placement=core.policy.placement, policy=HeadroomPolicy(HeadroomRule.REFUSE))
        ended = await story.ended(await story.create("first", node="host-a", memory_mib=1024))
        assert ended.error is None
        first = story.instance("first")
        headroom.check(first, node="host-a", pool_id=POOL_ID, resources=Resources(1, 3000, 2))
        local = replace(first, uid="local", storage=Storage.LOCAL)
        # What lives on a disk of its own node is not restarted elsewhere, so nobody keeps room for it.
        headroom.check(local, node="host-a", pool_id="local-host-a", resources=Resources(1, 2500, 2))
        with pytest.raises(ResourceExhausted):
            headroom.check(first, node="host-a", pool_id=POOL_ID, resources=Resources(1, 3600, 2))
        await story.end()

    run_virtually(main)


def test_launches_go_on_until_a_host_could_not_be_lost_any_more() -> None:
    async def main() -> None:
        rule = HeadroomPolicy(HeadroomRule.REFUSE)
        story = Story(nodes=3, node_memory_mib=4096 + 512, policy=Policy(headroom=rule))
        await story.begin()
        core = story.core().core
        assert core is not None
        flavor = Flavor("small", "flavor-uid", 1, 1024, 10, story.clock.now())
        await core.records.commit(Commit().create(keys.flavor("small"), flavor))
        service = story.services().instances.records
        # Each host has room for four. With eight of twelve in use any one host can be lost, with nine none can.
        for number in range(8):
            new = NewInstance("projects/p", f"vm-{number}", "flavors/small", IMAGE)
            assert (await story.ended((await service.create(new, ALICE)).operation)).error is None
        with pytest.raises(ResourceExhausted) as refused:
            await service.create(NewInstance("projects/p", "vm-8", "flavors/small", IMAGE), ALICE)
        assert refused.value.specific_reason == "NO_HEADROOM"
        assert not story.has_instance("vm-8")
        await story.end()

    run_virtually(main)
