"""Locks, deletion that can be taken back, and the history that every instance has."""

import pytest
from tests.support.hosts import CALL_S, Guest, Lab, code_of

from leeward.identity import Role
from leeward.v1 import instance_service_pb2

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(180)]


async def test_lock_and_unlock(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await lab.client.instances.LockInstance(
        instance_service_pb2.LockInstanceRequest(name=guest.name, reason="audit until noon"), timeout=CALL_S
    )
    async with lab.cluster.client(Role.CLIENT, "alice") as alice:
        request = instance_service_pb2.StopInstanceRequest(name=guest.name)
        code, refusal = await code_of(alice.instances.StopInstance(request, timeout=CALL_S))
        assert code == "FAILED_PRECONDITION"
        assert "audit until noon" in str(refusal)
        await guest.until_tick(boot=1, more=1)
        await lab.client.instances.UnlockInstance(
            instance_service_pb2.UnlockInstanceRequest(name=guest.name), timeout=CALL_S
        )
        await lab.done(alice.instances.StopInstance(request, timeout=CALL_S))
    assert await guest.state() == "STOPPED"


async def test_delete_and_undelete_and_event_history(lab_that_retains: Lab) -> None:
    guest = await lab_that_retains.running("web-1", host="host-a")
    await _delete(guest)
    assert await guest.state() == "SOFT_DELETED"
    assert lab_that_retains.qemus(guest.uid) == []
    assert guest.disk.exists()
    await guest.act("UndeleteInstance")
    assert await guest.state() == "ACTIVE"
    await guest.until_tick(boot=2)
    guest.check_undisturbed(boots=2)

    listed = await lab_that_retains.client.instances.ListInstanceEvents(
        instance_service_pb2.ListInstanceEventsRequest(parent=guest.name), timeout=CALL_S
    )
    assert [event.type for event in listed.events] == [1, 5, 8], "create, delete, undelete"
    assert all(event.outcome == "SUCCEEDED" and event.requested_by and event.steps for event in listed.events)

    await lab_that_retains.delete(guest.name)
    assert not guest.disk.parent.exists()


async def _delete(guest: Guest) -> None:
    request = instance_service_pb2.DeleteInstanceRequest(name=guest.name)
    await guest.lab.done(guest.lab.client.instances.DeleteInstance(request, timeout=CALL_S))
