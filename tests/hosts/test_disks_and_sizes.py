"""Resize, snapshot, rescue, rebuild, shelve and backup: what happens to a guest's disks."""

import itertools

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.support.hosts import CALL_S, IMAGE, PARENT, Guest, Lab

from leeward.v1 import backup_policy_service_pb2, image_service_pb2
from leeward.v1.backup_policy_pb2 import BackupPolicy
from leeward_lab.guest.record import boots_in, ticks_in
from leeward_lab.hosts.waiting import until

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]

_SMALL = "flavors/small"


async def test_resize_and_revert_then_resize_and_confirm(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    before = await guest.record()
    await guest.act("ResizeInstance", flavor=_SMALL)
    assert await guest.state() == "RESIZED"
    assert (await guest.record()).resources.memory_mib == 192
    await guest.until_tick(boot=2)
    guest.check_undisturbed(boots=2)

    await guest.act("RevertResize")
    assert await guest.state() == "ACTIVE"
    assert (await guest.record()).resources == before.resources
    await _until_boots(guest, [1, 2, 2])  # The disk of before the resize had seen one boot.
    await guest.stop()
    assert guest.on_disk().boots == 2
    assert _kept(guest) == []

    await guest.act("ResizeInstance", flavor=_SMALL, node="nodes/host-b")
    assert await guest.state() == "RESIZED"
    assert lab.qemus(guest.uid) == [], "one that was stopped stays so"
    await guest.act("ConfirmResize")
    assert await guest.state() == "STOPPED"
    assert await guest.host() == "host-b"
    assert _kept(guest) == []
    counts = {host: (await lab.node(host)).allocated.memory_mib for host in ("host-a", "host-b")}
    assert counts == {"host-a": 0, "host-b": 192}
    await guest.start()
    await guest.until_tick(boot=3)
    assert guest.only_process().host == "host-b"


async def test_resize_confirms_by_itself(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await guest.act("ResizeInstance", flavor=_SMALL, auto_confirm_after=Duration(seconds=3))

    async def confirmed() -> bool:
        return await guest.state() == "ACTIVE"

    await until(confirmed, what="the resize confirmed", timeout_s=30)
    assert (await guest.record()).resources.memory_mib == 192
    assert _kept(guest) == []


async def test_snapshot_of_a_guest_that_writes_on(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await _until_its_agent_answers(guest)
    first = guest.last_tick()
    done = await guest.act("SnapshotInstance", image_id="copy")
    assert "quiesced" in done.note
    last = await guest.until_tick(boot=1, more=2)
    moments = [tick for tick in ticks_in(guest.written()) if first.line <= tick.line <= last.line]
    gaps_s = [later.uptime_s - earlier.uptime_s for earlier, later in itertools.pairwise(moments)]
    print(f"longest time between two lines: {max(gaps_s):.2f} s")
    assert max(gaps_s) <= 2.0, "a line a second, and no pause above one second"
    guest.check_undisturbed(boots=1)

    copy = await lab.launch("copy-1", image=f"{PARENT}/images/copy")
    tick = await copy.until_tick(boot=2)
    assert tick.line >= first.line, "the image lacks what the guest had written before"
    image = await lab.client.images.GetImage(
        image_service_pb2.GetImageRequest(name=f"{PARENT}/images/copy"), timeout=CALL_S
    )
    assert image.properties["source_instance"] == guest.name


async def test_rescue_and_unrescue(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await guest.stop()
    own = guest.on_disk()
    await guest.start()
    await guest.until_tick(boot=2)
    await guest.act("RescueInstance", image=IMAGE)
    assert await guest.state() == "RESCUED"
    await guest.until_written("disk vdb sectors")
    record = guest.on_disk()
    assert record.boots == own.boots + 1
    await guest.until_written(f"boots={record.boots} lines={record.lines}")

    await guest.act("UnrescueInstance")
    assert await guest.state() == "ACTIVE"
    await guest.until_written(f"boot {record.boots + 1} line={record.lines}")
    assert guest.on_disk().missing() == ()
    assert not guest.disk.with_name("rescue.qcow2").exists()


async def test_rebuild_keeps_who_it_is(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    before = await guest.record()
    await guest.act("RebuildInstance")
    after = await guest.record()
    assert (after.uid, after.node, after.state) == (before.uid, before.node, before.state)
    assert list(after.network_interfaces) == list(before.network_interfaces)

    async def booted_anew() -> bool:
        return guest.on_disk().boots == 1 and guest.on_disk().lines > 0

    await until(booted_anew, what="a first boot of the new disk", timeout_s=90)
    await guest.stop()
    await guest.act("RebuildInstance")
    assert await guest.state() == "STOPPED"
    assert guest.on_disk().boots == 0


async def test_shelve_and_unshelve_on_another_node(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await guest.act("ShelveInstance")
    assert await guest.state() == "SHELVED_OFFLOADED"
    record = await guest.record()
    assert record.node == ""
    assert record.shelved_image
    assert not guest.disk.exists()
    assert (await lab.node("host-a")).instance_count == 0
    lines = guest.last_tick().line

    await guest.act("UnshelveInstance", node="nodes/host-b")
    assert await guest.state() == "ACTIVE"
    tick = await guest.until_tick(boot=2)
    assert tick.line > lines
    assert guest.only_process().host == "host-b"
    guest.check_undisturbed(boots=2)
    assert f"{PARENT}/images/web-1-shelved" not in [
        image.name for image in (await lab.client.list_images(PARENT)).items
    ]


async def test_shelve_keeps_the_node_for_a_while(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    await guest.act("ShelveInstance", offload_delay=Duration(seconds=600))
    assert await guest.state() == "SHELVED"
    assert await guest.host() == "host-a"
    await guest.act("UnshelveInstance")
    await guest.until_tick(boot=2)
    guest.check_undisturbed(boots=2)


async def test_backup_by_policy_is_restored_by_rebuild(lab: Lab) -> None:
    guest = await lab.running("web-1", host="host-a")
    policy = BackupPolicy(schedule="* * * * *", keep_count=1, instances=[guest.name])
    request = backup_policy_service_pb2.CreateBackupPolicyRequest(
        parent=PARENT, backup_policy_id="often", backup_policy=policy
    )
    await lab.client.backup_policies.CreateBackupPolicy(request, timeout=CALL_S)
    backup = ""

    async def made() -> bool:
        nonlocal backup
        found = [image.name for image in (await lab.client.list_images(PARENT)).items if "-often-" in image.name]
        backup = found[0] if found else ""
        return bool(found)

    await until(made, what="a backup", timeout_s=90)
    delete = backup_policy_service_pb2.DeleteBackupPolicyRequest(name=f"{PARENT}/backupPolicies/often")
    await lab.client.backup_policies.DeleteBackupPolicy(delete, timeout=CALL_S)
    lines = guest.last_tick().line
    await guest.act("RebuildInstance", image=backup)

    async def restored() -> bool:
        return guest.on_disk().boots == 2

    await until(restored, what="a second boot of the disk that was backed up", timeout_s=90)
    assert 0 < min(tick.line for tick in guest.on_disk().history) <= lines


async def _until_boots(guest: Guest, boots: list[int]) -> None:
    async def there() -> bool:
        return boots_in(guest.written()) == boots

    await until(there, what=f"its console showing the boots {boots}", timeout_s=90)


async def _until_its_agent_answers(guest: Guest) -> None:
    host = guest.lab.host(guest.only_process().host)
    ping = ["qemu-agent-command", f"leeward-{guest.uid}", '{"execute": "guest-ping"}']

    async def there() -> bool:
        return (await host.run(["virsh", "-c", "qemu:///system", *ping], check=False)).returncode == 0

    await until(there, what=f"the agent inside {guest.name} answering", timeout_s=60)


def _kept(guest: Guest) -> list[str]:
    """Files beside its disk that only an unfinished resize explains."""
    return [path.name for path in guest.disk.parent.glob("*before-resize*")]
