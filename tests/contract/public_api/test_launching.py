"""Launching with all that can be asked for."""

from base64 import b64encode

from tests.contract.public_api.calls import VM, launch, launched, refused
from tests.support.public import Face, PublicLab, image_spec

from leeward import keys
from leeward.errors import FailedPrecondition, NotFound
from leeward.v1 import instance_pb2
from leeward.v1 import instance_service_pb2 as pb
from leeward_controller.adapters.convert_state import StateCodec
from leeward_controller.records import INSTANCES, Records

KEY = "ssh-ed25519 " + b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()


async def test_what_was_asked_for_is_kept_and_told_but_for_secrets(lab: PublicLab, stocked: Face) -> None:
    wishes = {
        "data_disks_gib": [1, 2],
        "storage": instance_pb2.STORAGE_SHARED,
        "placement": instance_pb2.PlacementRules(preferred_labels={"zone": "a"}),
    }
    told = instance_pb2.CloudInit(user_data=b"#cloud-config\npassword: secret\n", ssh_authorized_keys=[f"{KEY} me\n"])
    made = await launched(stocked, cloud_init=told, **wishes)
    assert made.state == instance_pb2.Instance.STATE_ACTIVE
    assert list(made.data_disks_gib) == [1, 2]
    assert made.storage == instance_pb2.STORAGE_SHARED
    assert dict(made.placement.preferred_labels) == {"zone": "a"}
    assert made.cloud_init == instance_pb2.CloudInit(ssh_authorized_keys=[f"{KEY} me"]), "no user data"
    assert b"secret" not in made.SerializeToString()

    records = Records(store=lab.cluster.store, codec=StateCodec(), ids=lab.ids, clock=lab.clock)
    stored = await records.get(INSTANCES, keys.instance(VM))
    assert stored is not None
    assert stored.value.cloud_init is not None
    assert stored.value.cloud_init.user_data == told.user_data, "the guest gets it"


async def test_machine_and_firmware_are_those_of_the_image(lab: PublicLab, stocked: Face) -> None:
    await stocked.upload(image_spec("modern", properties={"machine": "pc", "firmware": "uefi", "os": "any"}))
    await launched(stocked)
    await launched(stocked, "other", image="projects/p/images/modern")
    records = Records(store=lab.cluster.store, codec=StateCodec(), ids=lab.ids, clock=lab.clock)
    found = {s.value.name: (s.value.machine, s.value.firmware) for s in (await records.list(INSTANCES)).items}
    assert found == {VM: ("q35", "bios"), "projects/p/instances/other": ("pc", "uefi")}


async def test_what_it_names_must_be_there(stocked: Face) -> None:
    group = "projects/p/groups/web"
    assert (await refused(NotFound, stocked.instances.CreateInstance(launch(group=group)))).resource == group
    error = await refused(FailedPrecondition, stocked.instances.CreateInstance(launch(cpu_model="baseline")))
    assert error.specific_reason == "NO_BASELINE", "simulated hosts tell of no processor models"
    await refused(NotFound, stocked.instances.GetInstance(pb.GetInstanceRequest(name=VM)))
