"""Planned work on a node: it is emptied while its guests run on, and gets back what left."""

import pytest
from tests.support.hosts import CALL_S, Lab

from leeward.v1 import node_service_pb2
from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]


async def test_drain_and_uncordon(lab: Lab) -> None:
    runs = await lab.running("web-1", host="host-a")
    stopped = await lab.running("web-2", host="host-a")
    await stopped.stop()
    await lab.done(
        lab.client.nodes.DrainNode(
            node_service_pb2.DrainNodeRequest(name="nodes/host-a", enter_maintenance=True), timeout=CALL_S
        )
    )
    assert await lab.condition("host-a") == "MAINTENANCE"
    assert (await lab.node("host-a")).instance_count == 0
    assert (await lab.domains())["host-a"] == []
    assert runs.only_process().host == await runs.host() != "host-a"
    assert await stopped.state() == "STOPPED"
    assert await stopped.host() != "host-a"
    await runs.until_tick(boot=1, more=2)
    runs.check_undisturbed(boots=1)

    await lab.client.nodes.UncordonNode(
        node_service_pb2.UncordonNodeRequest(name="nodes/host-a", bring_back=True), timeout=CALL_S
    )

    async def back() -> bool:
        records = [await runs.record(), await stopped.record()]
        return all(each.node == "nodes/host-a" and not each.current_operation for each in records)

    await until(back, what="both guests back on host-a", timeout_s=90)
    assert await lab.condition("host-a") == "READY"
    assert runs.only_process().host == "host-a"
    runs.check_undisturbed(boots=1)
