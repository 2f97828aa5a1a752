"""Values of the agent API survive the wire, whatever they hold."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from leeward.agent import convert
from leeward.agent.types import (
    Caller,
    CloudInit,
    ConsoleChunk,
    CpuReport,
    DiskFormat,
    Escalation,
    Firmware,
    GuestSpec,
    GuestState,
    GuestStatus,
    HeldGuest,
    HeldImage,
    ImageFile,
    Inventory,
    MachineType,
    MigrationDestination,
    MigrationLimits,
    MigrationPhase,
    MigrationProgress,
    Nic,
    NodeReport,
    PoolInventory,
    PoolKind,
    PoolReport,
    PoolSource,
    PutAside,
    RescueImage,
    SlotObservation,
    SnapshotFile,
    StopCause,
)
from leeward.agent.v1 import agent_pb2 as pb
from leeward.errors import InvalidArgument
from leeward.mapping import check

SPEC = GuestSpec(
    uid="one",
    name="projects/p/instances/one",
    vcpus=2,
    memory_mib=512,
    disk_gib=10,
    pool_id="pool",
    image_digest="a" * 64,
    image_format=DiskFormat.QCOW2,
    run_epoch=7,
    nics=(Nic("52:54:00:00:00:01"), Nic("52:54:00:00:00:02", bridge="br0")),
    data_disks_gib=(1, 20),
    machine=MachineType.PC,
    firmware=Firmware.UEFI,
    cpu_model="Westmere",
    cloud_init=CloudInit(user_data=b"\x00#cloud-config", ssh_authorized_keys=("ssh-ed25519 AAAA",)),
    rescue=RescueImage("b" * 64, DiskFormat.RAW),
)
REPORT = NodeReport(
    node="a",
    boot_id="b",
    agent_id="c",
    address="a:1",
    vcpus=8,
    memory_mib=1,
    pools=(PoolReport("p", PoolKind.DIRECTORY, 10, 5, healthy=False, shared=True, root="/pool"),),
    hypervisor="qemu",
    hypervisor_version="7.2",
    agent_version="1",
    guard_armed=True,
    lease_ttl_s=5.0,
    guard_delay_s=0.5,
    labels={"rack": "r1"},
    draining=True,
    cpu=CpuReport("Skylake", ("vmx",), ("Nehalem", "Westmere")),
)
PAIRS = [
    (Caller, pb.Caller),
    (CloudInit, pb.CloudInit),
    (ConsoleChunk, pb.ReadConsoleResponse),
    (CpuReport, pb.CpuReport),
    (GuestSpec, pb.GuestSpec),
    (GuestStatus, pb.GuestStatus),
    (HeldGuest, pb.HeldGuest),
    (HeldImage, pb.HeldImage),
    (ImageFile, pb.ImageFile),
    (Inventory, pb.Inventory),
    (MigrationDestination, pb.MigrationDestination),
    (MigrationLimits, pb.MigrationLimits),
    (MigrationProgress, pb.MigrationProgress),
    (Nic, pb.Nic),
    (NodeReport, pb.NodeReport),
    (PoolInventory, pb.PoolInventory),
    (PoolReport, pb.PoolReport),
    (PoolSource, pb.PoolSource),
    (PutAside, pb.PutAside),
    (RescueImage, pb.RescueImage),
    (SlotObservation, pb.SlotObservation),
    (SnapshotFile, pb.SnapshotFile),
]


def test_every_field_has_its_place_on_the_wire() -> None:
    assert [difference for kind, message in PAIRS for difference in check(kind, message)] == []


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, cloud_init=None, rescue=None, nics=(), data_disks_gib=())])
def test_spec_survives(spec: GuestSpec) -> None:
    wire = pb.CreateDiskRequest.FromString(pb.CreateDiskRequest(spec=convert.spec_to_wire(spec)).SerializeToString())
    assert convert.spec_of(wire) == spec


def test_report_survives_as_the_value_of_a_heartbeat_key() -> None:
    assert convert.decode_node_report(convert.encode_node_report(REPORT)) == REPORT
    with pytest.raises(InvalidArgument):
        convert.decode_node_report(b"\xff\xff")


def test_inventory_and_snapshot_survive() -> None:
    inventory = Inventory(
        pools=(PoolInventory("p", (HeldImage("c" * 64, 5, ("one",), 1.5),), (HeldGuest("one", ("f",), 3, "a", 2.0),)),),
        guests=(GuestStatus("one", "n", GuestState.STOPPED, StopCause.FENCED, 3, migrating=True),),
        sockets=("one",),
        console_logs=("one", "two"),
        put_aside=(PutAside("one", "n", 3, "host-b", datetime(2026, 1, 1, 12, tzinfo=UTC)),),
    )
    assert convert.inventory_from_wire(convert.inventory_to_wire(inventory)) == inventory
    snapshot = SnapshotFile(ImageFile("d" * 64, 1, 2, DiskFormat.QCOW2), quiesced=True)
    assert convert.snapshot_from_wire(convert.snapshot_to_wire(snapshot)) == snapshot


def test_migration_survives() -> None:
    limits = MigrationLimits(1, 2, 3.5, Escalation.POST_COPY, copies_disks=True, target_pool_id="q")
    request = pb.MigrateGuestRequest(
        limits=convert.limits_to_wire(limits),
        destination=convert.destination_to_wire(MigrationDestination("a", "a:1", "boot")),
    )
    assert convert.limits_of(request) == limits
    assert convert.destination_of(request) == MigrationDestination("a", "a:1", "boot")
    progress = MigrationProgress(MigrationPhase.SWITCHING, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, "d", "e")
    assert convert.progress_from_wire(convert.progress_to_wire(progress)) == progress


def test_what_is_missing_or_of_another_version_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="spec"):
        convert.spec_of(pb.CreateDiskRequest())
    wire = convert.spec_to_wire(SPEC)
    wire.firmware = pb.FIRMWARE_UNSPECIFIED
    with pytest.raises(InvalidArgument, match="firmware"):
        convert.spec_of(pb.CreateDiskRequest(spec=wire))
    with pytest.raises(InvalidArgument):
        convert.status_from_wire(pb.GuestStatus(uid="one"))
    for caller in (pb.Caller(operation="", revision=1), pb.Caller(operation="o", revision=0)):
        with pytest.raises(InvalidArgument, match="caller"):
            convert.caller_of(pb.CreateDiskRequest(caller=caller))
