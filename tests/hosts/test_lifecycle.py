"""One guest from its launch to its deletion, and nothing of it left."""

import time

import pytest
from tests.support.hosts import CALL_S, PARENT, Guest, Lab, code_of, gone

from leeward.v1 import flavor_service_pb2, image_service_pb2, instance_service_pb2
from leeward.v1.flavor_pb2 import Flavor
from leeward.v1.image_pb2 import DiskFormat
from leeward.v1.instance_service_pb2 import RebootMode

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(180)]


async def test_a_guest_from_launch_to_delete(lab: Lab) -> None:
    before = {host: (await lab.node(host)).allocated for host in lab.cluster.shape.host_names}
    image = await lab.client.upload_image(
        parent=PARENT, image_id="fresh", path=lab.image, format=DiskFormat.DISK_FORMAT_QCOW2
    )
    flavor = await lab.client.flavors.CreateFlavor(
        flavor_service_pb2.CreateFlavorRequest(flavor_id="fresh", flavor=Flavor(vcpus=1, memory_mib=192, disk_gib=2)),
        timeout=CALL_S,
    )
    guest = await lab.launch("web-1", image=image.name, flavor=flavor.name)
    await guest.until_tick(boot=1, more=2)
    host = await guest.host()
    assert guest.only_process().host == host
    assert "tick boot=1" in await guest.console()
    node = await lab.node(host)
    assert node.allocated.vcpus - before[host].vcpus == 1
    assert node.allocated.memory_mib - before[host].memory_mib == 192

    await _stop_start_and_reboot(guest)
    assert await guest.host() == guest.only_process().host == host
    guest.check_undisturbed(boots=4)
    assert guest.on_disk().boots == 4

    request = instance_service_pb2.EvacuateInstanceRequest(name=guest.name)
    code, refusal = await code_of(lab.done(lab.client.instances.EvacuateInstance(request, timeout=CALL_S)))
    assert code == "FAILED_PRECONDITION", refusal
    assert refusal is not None
    assert f"nodes/{host}" in refusal.message

    await lab.delete(guest.name)
    assert await gone(guest.record)
    assert lab.qemus(guest.uid) == []
    assert list(lab.cluster.lab.pool.rglob(f"*{guest.uid}*")) == []
    assert all(domains == [] for domains in (await lab.domains()).values())
    assert {name: (await lab.node(name)).allocated for name in before} == before
    await lab.client.images.DeleteImage(image_service_pb2.DeleteImageRequest(name=image.name), timeout=CALL_S)
    await lab.client.flavors.DeleteFlavor(flavor_service_pb2.DeleteFlavorRequest(name=flavor.name), timeout=CALL_S)


async def _stop_start_and_reboot(guest: Guest) -> None:
    """By the power button, and in each way to boot: three boots more, all from the same disk."""
    began_s = time.monotonic()
    await guest.stop(grace_s=30)
    assert time.monotonic() - began_s < 20, "it was killed when its time was up, instead of obeying"
    assert "powering off" in guest.written()
    assert await guest.state() == "STOPPED"
    assert guest.lab.qemus(guest.uid) == []

    await guest.start()
    await guest.until_tick(boot=2)
    assert await guest.reboot(RebootMode.REBOOT_MODE_SOFT) == "SOFT"
    await guest.until_tick(boot=3)
    assert await guest.reboot(RebootMode.REBOOT_MODE_HARD) == "HARD"
    await guest.until_tick(boot=4)
    assert await guest.state() == "ACTIVE"
