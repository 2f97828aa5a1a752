"""The life of an instance, its operations, and its console."""

import asyncio
from pathlib import Path

from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from tests.contract.public_api.calls import VM, launched, refused
from tests.support.public import ADMIN, WAIT_S, Face, PublicLab, add_flavor

from leeward.errors import (
    NotFound,
    WrongState,
)
from leeward.v1 import instance_pb2, operation_pb2
from leeward.v1 import instance_service_pb2 as pb
from leeward.v1 import operation_service_pb2 as operation_pb


async def test_an_instance_lives_from_launch_to_delete(stocked: Face) -> None:
    made = await launched(
        stocked,
        labels={"tier": "web"},
        network_interfaces=[instance_pb2.NetworkInterface(bridge="br0"), instance_pb2.NetworkInterface()],
    )
    assert made.state == instance_pb2.Instance.STATE_ACTIVE
    assert made.node in ("nodes/host-a", "nodes/host-b")
    assert made.restart_on_failure
    assert made.current_operation == ""
    macs = [nic.mac_address for nic in made.network_interfaces]
    assert len(set(macs)) == 2
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "unicast and locally administered"

    stop = pb.StopInstanceRequest(name=VM, grace_period=Duration(seconds=5))
    stopped = await stocked.ended(await stocked.instances.StopInstance(stop))
    assert not stopped.HasField("error"), stopped
    error = await refused(WrongState, stocked.instances.StopInstance(stop))
    assert error.metadata == {"current_state": "STOPPED", "allowed_states": "ACTIVE, ERROR, PAUSED"}
    for method, request in [
        ("StartInstance", pb.StartInstanceRequest(name=VM)),
        ("RebootInstance", pb.RebootInstanceRequest(name=VM, mode=pb.REBOOT_MODE_HARD)),
        ("LiveMigrateInstance", pb.LiveMigrateInstanceRequest(name=VM)),
    ]:
        ended = await stocked.ended(await getattr(stocked.instances, method)(request))
        assert not ended.HasField("error"), ended
    moved = await stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM))
    assert moved.node != made.node
    assert [nic.mac_address for nic in moved.network_interfaces] == macs

    page = await stocked.instances.ListInstanceEvents(pb.ListInstanceEventsRequest(parent=VM, page_size=3))
    rest = pb.ListInstanceEventsRequest(parent=VM, page_size=3, page_token=page.next_page_token)
    events = [*page.events, *(await stocked.instances.ListInstanceEvents(rest)).events]
    types = operation_pb2.OperationType
    assert [types.Name(event.type) for event in events] == [
        f"OPERATION_TYPE_{kind}" for kind in ("CREATE", "STOP", "START", "REBOOT", "LIVE_MIGRATE")
    ]
    assert {event.requested_by for event in events} == {str(ADMIN)}

    gone = await stocked.ended(await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name=VM)))
    assert not gone.HasField("error"), gone
    await refused(NotFound, stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM)))


async def test_an_operation_is_watched_to_its_end_through_either_controller(lab: PublicLab, stocked: Face) -> None:
    other = await lab.add_controller(principal=ADMIN)
    await add_flavor(stocked, "big", memory_mib=4096)
    await launched(stocked, flavor="flavors/big")
    migration = await stocked.instances.LiveMigrateInstance(
        pb.LiveMigrateInstanceRequest(name=VM, max_bandwidth_mib_per_second=2048)
    )
    async with asyncio.timeout(WAIT_S):
        here, there = await asyncio.gather(_moments(stocked, migration.name), _moments(other, migration.name))
    for moments in (here, there):
        last = moments[-1]
        assert last.operation.done
        assert last.metadata.phase == operation_pb2.OPERATION_PHASE_SUCCEEDED
        assert last.metadata.percent == 100
        steps = [step.step for step in last.metadata.steps]
        assert steps == ["place", "prepare_disks", "migrate", "settle", "delete_old_disks"]
        instance = instance_pb2.Instance()
        assert last.operation.response.Unpack(instance)
        assert instance.node == last.metadata.target_node
        copying = [m for m in moments if m.metadata.migration.phase == operation_pb2.MIGRATION_PHASE_COPYING]
        assert copying, "the progress comes through the one that drives it"
        percents = [m.metadata.percent for m in moments]
        assert percents == sorted(percents)
        revisions = [m.revision for m in moments]
        assert revisions == sorted(revisions)


async def _moments(face: Face, name: str) -> list[operation_pb.WatchOperationResponse]:
    return [moment async for moment in face.watch.WatchOperation(operation_pb.WatchOperationRequest(name=name))]


async def test_waiting_ends_with_the_operation_or_the_time(stocked: Face) -> None:
    await launched(stocked)
    stop = await stocked.instances.StopInstance(pb.StopInstanceRequest(name=VM))
    soon = operations_pb2.WaitOperationRequest(name=stop.name, timeout=Duration(nanos=1))
    assert not (await stocked.operations.WaitOperation(soon)).done
    ended = await stocked.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=stop.name))
    assert ended.done
    await stocked.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=stop.name))
    assert (await stocked.operations.GetOperation(operations_pb2.GetOperationRequest(name=stop.name))) == ended


async def test_a_console_log_is_read_in_parts(stocked: Face, tmp_path: Path) -> None:
    made = await launched(stocked)
    (tmp_path / "consoles" / f"{made.uid}.log").write_bytes(b"hello\nworld\n")
    part = await stocked.instances.GetConsoleLog(pb.GetConsoleLogRequest(name=VM, offset=6, limit_bytes=5))
    assert (part.data, part.next_offset) == (b"world", 11)
    assert part.end_offset >= 12
