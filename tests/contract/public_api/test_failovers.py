"""A failover as operators see it afterwards: over the API, at the command line, and in the metrics."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.contract.public_api.calls import launched, refused
from tests.contract.test_cli_api import Shell
from tests.support.public import WAIT_S, Face, PublicLab

from leeward.cli.units import duration_text
from leeward.client import connect
from leeward.errors import InvalidArgument, NotFound
from leeward.v1.failover_pb2 import Failover, FailoverGuest
from leeward.v1.failover_service_pb2 import GetFailoverRequest, ListFailoversRequest
from leeward.v1.instance_service_pb2 import GetInstanceRequest
from leeward.v1.node_pb2 import FENCE_PROOF_KIND_SILENCE
from leeward.v1.node_service_pb2 import CordonNodeRequest
from leeward_controller.adapters.metrics import ControllerCollector


async def test_a_failover_is_told_by_api_command_line_and_metrics(
    lab: PublicLab, stocked: Face, tmp_path: Path
) -> None:
    names = [(await launched(stocked, f"vm-{number}", node="nodes/host-a")).name for number in range(2)]
    async with connect(stocked.address) as client:
        assert (await client.list_failovers()).items == ()
        await lab.cluster.nodes["host-a"].power_off()
        core = lab.cluster.controllers["controller-0"].core
        assert core is not None
        assert await core.view.wait_for(lambda: bool(core.failover_meter.failovers), timeout_s=2 * WAIT_S)
        (listed,) = (await client.list_failovers(filter="state = RECOVERED")).items
        failover = await client.failovers.GetFailover(GetFailoverRequest(name=listed.name))
        assert list(listed.guests) == []
        assert (await client.list_failovers(filter="node = host-b")).items == ()
        page = await client.failovers.ListFailovers(ListFailoversRequest(page_size=1))
        assert [each.name for each in page.failovers] == [failover.name]
        missing = GetFailoverRequest(name="failovers/f20200101-000000-001")
        await refused(NotFound, client.failovers.GetFailover(missing))
        await refused(InvalidArgument, client.failovers.ListFailovers(ListFailoversRequest(filter="color = red")))
    assert (failover.node, failover.state) == ("nodes/host-a", Failover.STATE_RECOVERED)
    assert (failover.proof_kind, failover.measured) == (FENCE_PROOF_KIND_SILENCE, True)
    assert (failover.to_restart_count, failover.restarted_count) == (2, 2)
    assert [guest.instance for guest in failover.guests] == names
    assert {guest.outcome for guest in failover.guests} == {FailoverGuest.OUTCOME_RESTARTED}
    assert {guest.target_node for guest in failover.guests} == {"nodes/host-b"}
    ordered = [failover.proof_duration, failover.first_restart_duration, failover.last_restart_duration]
    seconds = [each.ToTimedelta().total_seconds() for each in ordered]
    assert 0.0 < seconds[0] < seconds[1] <= seconds[2] < WAIT_S

    leeward = Shell(stocked, home=tmp_path)
    table = (await leeward("failover", "list", "--node", "host-a")).out.splitlines()
    assert table[0].split()[:3] == ["FAILOVER", "NODE", "STATE"]
    short = failover.name.removeprefix("failovers/")
    for cell in (short, "host-a", "RECOVERED", "SILENCE", "2/2", duration_text(seconds[0])):
        assert cell in table[1]
    assert "There are none." in (await leeward("failover", "list", "--node", "host-b")).err
    shown = (await leeward("failover", "show", short)).out
    lines = shown.splitlines()
    assert lines[0] == f"{short}: host-a, RECOVERED"
    wanted = ["lease was lost", "proved by SILENCE", "2 to restart", "restarted on host-b", "over: nothing is left"]
    positions = [next(at for at, line in enumerate(lines) if text in line) for text in wanted]
    assert positions == sorted(positions)
    assert sum("restarted on host-b (started in" in line for line in lines) == 2
    exact = (await leeward("failover", "show", failover.name, "-o", "json")).json
    assert [guest["outcome"] for guest in exact["guests"]] == ["OUTCOME_RESTARTED"] * 2
    assert "proof_kind: FENCE_PROOF_KIND_SILENCE" in (await leeward("failover", "list", "-o", "yaml")).out
    assert (await leeward("failover", "show", "nothing")).code == 3

    registry = CollectorRegistry()
    registry.register(ControllerCollector(core))
    metrics = generate_latest(registry).decode()
    assert 'leeward_failovers_total{outcome="RECOVERED",proof="SILENCE"} 1.0' in metrics
    assert 'leeward_failover_instances_total{outcome="RESTARTED"} 2.0' in metrics
    assert "leeward_failover_prove_seconds_count 1.0" in metrics
    assert 'leeward_failover_restart_seconds_bucket{le="+Inf"} 2.0' in metrics
    told = float(metrics.partition("leeward_failover_prove_seconds_sum ")[2].split()[0])
    assert told == pytest.approx(seconds[0], abs=0.01)


async def test_a_drill_shows_where_guests_would_go_and_loses_nothing(stocked: Face, tmp_path: Path) -> None:
    made = await launched(stocked, "vm", node="nodes/host-a")
    await launched(stocked, "idle", node="nodes/host-a", restart_on_failure=False)
    leeward = Shell(stocked, home=tmp_path)
    valid = await leeward("failover", "drill", "host-a", "--validate-only")
    assert "Nothing was changed." in valid.err
    drilled = await leeward("failover", "drill", "host-a")
    assert drilled.code == 0, drilled
    lines = drilled.out.splitlines()
    assert lines[0].endswith(": host-a, drill, RECOVERED")
    assert "a drill began: 1 to move, 1 take no part" in lines[1]
    assert "vm moved live to host-b in " in lines[2]
    assert lines[3].endswith("over: all could be moved there, and are back")
    after = await stocked.instances.GetInstance(GetInstanceRequest(name=made.name))
    assert (after.node, after.last_boot_time) == ("nodes/host-a", made.last_boot_time)
    (listed,) = (await leeward("failover", "list", "-o", "json")).json
    assert (listed["kind"], listed["restarted_count"]) == ("KIND_DRILL", 1)

    other = await launched(stocked, "other", node="nodes/host-b")
    await stocked.nodes.CordonNode(CordonNodeRequest(name="nodes/host-a"))
    refused_there = await leeward("failover", "drill", "host-b", "-o", "json")
    assert refused_there.code != 0
    assert refused_there.error["reason"] == "DRILL_FAILED"
    assert (await leeward("failover", "drill", "host-a")).code == 4
    after = await stocked.instances.GetInstance(GetInstanceRequest(name=other.name))
    assert after.node == "nodes/host-b"
    shown = await leeward("failover", "show", (await leeward("failover", "list", "-o", "json")).json[-1]["name"])
    assert "other would find no place: " in shown.out
    assert "over: not all could be moved there and back" in shown.out
