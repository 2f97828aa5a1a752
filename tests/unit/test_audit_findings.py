"""What an audit finds: nothing in a cluster that is as it is recorded, and each kind of drift by its name."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from leeward.agent.types import (
    CloudInit,
    DiskFormat,
    GuestState,
    GuestStatus,
    HeldGuest,
    HeldImage,
    ImageFile,
    Inventory,
    PoolInventory,
    SnapshotFile,
    StopCause,
)
from leeward_controller.audit.findings import find
from leeward_controller.audit.model import (
    ClearOperation,
    Contents,
    DeleteDisk,
    DeleteImageFile,
    DiskRemnant,
    DropRemnant,
    FindingKind,
    RaiseRunEpoch,
    RemoveGuest,
    SetGroup,
    SetReservation,
)
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.group import Group, GroupMember, GroupPolicy
from leeward_controller.domain.instance import (
    Deletion,
    Instance,
    InstanceState,
    Rescue,
    Resize,
    Resources,
    Shelf,
)
from leeward_controller.domain.node import NodeAllocation, Reservation
from leeward_controller.domain.operation import Operation, OperationPhase, OperationType, PlainArguments, Work
from leeward_controller.operations.placing import places_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DIGEST, OTHER = "ab" * 32, "cd" * 32
HOUR_S = 3600.0
K, S = FindingKind, InstanceState


def instance(name: str, node: str, state: InstanceState = S.ACTIVE, pool: str = "shared") -> Instance:
    return Instance(
        name=f"projects/p/instances/{name}",
        uid=f"uid-{name}",
        state=state,
        flavor="small",
        resources=Resources(1, 1024, 2),
        image="projects/p/images/tiny",
        image_digest=DIGEST,
        image_format=DiskFormat.RAW,
        pool_id=pool,
        nics=(),
        create_time=NOW,
        update_time=NOW,
        created_by="client:alice",
        node=node,
        run_epoch=3,
    )


WEB, DB = instance("web", "a"), instance("db", "b", S.STOPPED)
IMAGE = Image("projects/p/images/tiny", "i", DIGEST, DiskFormat.RAW, 10, 10, ("shared",), NOW, "client:alice")
GROUP = Group("projects/p/groups/g", "g", GroupPolicy.ANTI_AFFINITY, NOW)


def held(each: Instance, *more: str, epoch: int = 3, node: str | None = None, age_s: float = 5.0) -> HeldGuest:
    files = ("disk.json", "root.qcow2", "run-epoch", *more)
    return HeldGuest(each.uid, files, epoch, each.node if node is None else node, age_s)


def guest(each: Instance, state: GuestState, cause: StopCause = StopCause.NONE) -> GuestStatus:
    return GuestStatus(each.uid, each.name, state, cause, 3)


def inventory(
    *guests: GuestStatus,
    folders: tuple[HeldGuest, ...] = (held(WEB), held(DB)),
    images: tuple[HeldImage, ...] = (HeldImage(DIGEST, 10, (WEB.uid, DB.uid), 9 * HOUR_S),),
    local: PoolInventory | None = None,
    sockets: tuple[str, ...] = (),
    logs: tuple[str, ...] = (),
) -> Inventory:
    pools = (PoolInventory("shared", images, folders), *([] if local is None else [local]))
    return Inventory(pools, guests, sockets, logs)


def allocations(*instances: Instance) -> tuple[NodeAllocation, ...]:
    found: dict[str, NodeAllocation] = {}
    for each in instances:
        for node, reservation in places_of(each).items():
            found[node] = found.get(node, NodeAllocation(node)).with_reservation(reservation)
    return tuple(found.values())


def contents(web: Instance = WEB, db: Instance = DB, **changes: object) -> Contents:
    a = inventory(guest(WEB, GuestState.RUNNING), sockets=(WEB.uid,), logs=(WEB.uid,))
    b = inventory(guest(DB, GuestState.STOPPED), logs=(DB.uid,))
    usual = Contents(
        revision=100,
        instances={each.uid: each for each in (web, db)},
        allocations=allocations(web, db),
        images=(IMAGE,),
        inventories={"a": a, "b": b},
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def on(web: Instance, *files: str, **changes: object) -> Contents:
    """The cluster with another `web`, whose folder holds these files beside the usual ones."""
    folders = (held(web, *files), held(DB))
    a = inventory(*_guests_of(web), folders=folders, sockets=(web.uid,), logs=(web.uid,))
    b = inventory(guest(DB, GuestState.STOPPED), folders=folders, logs=(DB.uid,))
    return contents(web, inventories={"a": a, "b": b}, **changes)


def _guests_of(web: Instance) -> list[GuestStatus]:
    if not web.node:
        return []
    state = web.wanted_guest
    return [guest(web, state)]


def operation(phase: OperationPhase, uid: str = WEB.uid, work: Work | None = None) -> Operation:
    return Operation(
        id="o",
        type=OperationType.SNAPSHOT,
        instance=WEB.name,
        instance_uid=uid,
        arguments=PlainArguments(),
        phase=phase,
        step="copy",
        requested_by="client:alice",
        create_time=NOW,
        update_time=NOW,
        work=work or Work(),
    )


RESIZED = replace(
    WEB, state=S.RESIZED, resources=Resources(4, 512, 8), resize=Resize("small", WEB.resources, "b", "shared", S.ACTIVE)
)
GROWN_HERE = replace(RESIZED, resize=Resize("small", WEB.resources, "a", "shared", S.ACTIVE))
OFFLOADED = replace(WEB, state=S.SHELVED_OFFLOADED, node="", pool_id="", shelf=Shelf("i", OTHER, DiskFormat.QCOW2))


@pytest.mark.parametrize(
    "clean",
    [
        contents(),
        on(RESIZED, "root.before-resize.qcow2"),
        on(GROWN_HERE, "root.before-resize.qcow2"),
        on(replace(WEB, state=S.SUSPENDED), "memory.save"),
        on(
            replace(WEB, state=S.RESCUED, rescue=Rescue("i", OTHER, DiskFormat.RAW, S.STOPPED)),
            "rescue.qcow2",
        ),
        on(replace(WEB, cloud_init=CloudInit()), "seed.iso"),
        on(replace(WEB, state=S.SOFT_DELETED, deletion=Deletion(S.SUSPENDED, NOW)), "memory.save"),
        contents(
            inventories={
                # What a hypervisor of a new image, or a failed snapshot, has just left is for the sweep.
                "b": inventory(images=(HeldImage(DIGEST, 1, (), 0.0), HeldImage(OTHER, 1, (), HOUR_S - 1)))
            },
            allocations=allocations(WEB, DB),
        ),
    ],
)
def test_what_is_as_it_is_recorded_is_no_drift(clean: Contents) -> None:
    assert [str(finding) for finding in find(clean)] == []


def _with_a(*guests: GuestStatus, **parts: object) -> Contents:
    return contents(inventories={"a": inventory(*guests, **parts), "b": contents().inventories["b"]})  # type: ignore[arg-type]


GONE = instance("gone", "a")
LOCAL = "local-a"
RUNNING = guest(WEB, GuestState.RUNNING)

DRIFTS: dict[FindingKind, tuple[Contents, str, object]] = {
    K.RESERVATION_OF_NO_INSTANCE: (
        contents(allocations=allocations(WEB, DB, GONE)),
        "nodes/a",
        SetReservation("a", GONE.uid, None),
    ),
    K.RESERVATION_ON_WRONG_NODE: (
        contents(allocations=(*allocations(WEB, DB), *allocations(replace(DB, node="c")))),
        DB.name,
        SetReservation("c", DB.uid, None),
    ),
    K.RESERVATION_OF_WRONG_SIZE: (
        contents(allocations=allocations(replace(WEB, resources=Resources(9, 9, 9)), DB)),
        WEB.name,
        SetReservation("a", WEB.uid, places_of(WEB)["a"]),
    ),
    K.INSTANCE_WITHOUT_RESERVATION: (
        contents(allocations=allocations(DB)),
        WEB.name,
        SetReservation("a", WEB.uid, places_of(WEB)["a"]),
    ),
    K.GROUP_MEMBERSHIP: (
        contents(
            replace(WEB, group=GROUP.name),
            groups=(replace(GROUP, members=(GroupMember("x", "projects/p/x", ("a",)),)),),
        ),
        GROUP.name,
        SetGroup(replace(GROUP, members=(GroupMember(WEB.uid, WEB.name, ("a",)),))),
    ),
    K.OPERATION_STILL_CURRENT: (
        contents(
            replace(WEB, current_operation="operations/o"),
            operations={"operations/o": operation(OperationPhase.FAILED)},
        ),
        WEB.name,
        ClearOperation(WEB.name),
    ),
    K.GUEST_OF_NO_INSTANCE: (
        _with_a(RUNNING, guest(GONE, GuestState.STOPPED)),
        "nodes/a",
        RemoveGuest("a", GONE.uid),
    ),
    K.GUEST_ON_WRONG_NODE: (_with_a(RUNNING, guest(DB, GuestState.PAUSED)), DB.name, RemoveGuest("a", DB.uid)),
    K.DEFINITION_ON_WRONG_NODE: (_with_a(RUNNING, guest(DB, GuestState.STOPPED)), DB.name, RemoveGuest("a", DB.uid)),
    K.GUEST_RUNS_UNWANTED: (contents(replace(WEB, state=S.STOPPED)), WEB.name, None),
    K.GUEST_NOT_RUNNING: (_with_a(), WEB.name, None),
    K.SOCKET_OF_NO_GUEST: (_with_a(RUNNING, sockets=(DB.uid,)), "nodes/a", RemoveGuest("a", DB.uid)),
    K.CONSOLE_LOG_OF_NO_GUEST: (_with_a(RUNNING, logs=("gone",)), "nodes/a", RemoveGuest("a", "gone")),
    K.DISK_OF_NO_INSTANCE: (
        _with_a(RUNNING, folders=(held(WEB), held(DB), held(GONE, age_s=HOUR_S, epoch=7))),
        "pools/shared",
        DeleteDisk("a", "shared", GONE.uid, 7, HOUR_S),
    ),
    K.DISK_IN_WRONG_POOL: (
        _with_a(RUNNING, local=PoolInventory(LOCAL, (), (held(DB, age_s=1.0),))),
        f"pools/{LOCAL}",
        DeleteDisk("a", LOCAL, DB.uid, 3, 1.0),
    ),
    K.INSTANCE_WITHOUT_DISK: (_with_a(RUNNING, folders=(held(WEB),)), DB.name, None),
    K.INSTANCE_WITHOUT_MEMORY: (on(replace(WEB, state=S.SUSPENDED)), WEB.name, None),
    K.LEFTOVER_FILE: (
        on(WEB, "memory.save"),
        WEB.name,
        DropRemnant("a", WEB.name, DiskRemnant.MEMORY),
    ),
    K.RUN_EPOCH_AHEAD: (
        _with_a(RUNNING, folders=(held(WEB), held(DB, epoch=5, node="a"))),
        DB.name,
        RaiseRunEpoch(DB.name, 6),
    ),
    K.IMAGE_FILE_OF_NO_IMAGE: (
        _with_a(RUNNING, images=(HeldImage(DIGEST, 1, (), 0.0), HeldImage(OTHER, 1, (), HOUR_S))),
        "pools/shared",
        DeleteImageFile("a", "shared", OTHER, HOUR_S),
    ),
    K.IMAGE_WITHOUT_FILE: (_with_a(RUNNING, images=()), IMAGE.name, None),
}


@pytest.mark.parametrize("kind", FindingKind)
def test_each_kind_of_drift_is_found_alone_and_explained(kind: FindingKind) -> None:
    drifted, subject, repair = DRIFTS[kind]
    (finding,) = find(drifted)
    assert (finding.kind, finding.subject, finding.repair) == (kind, subject, repair)
    assert finding.explanation
    assert finding.remedy


@pytest.mark.parametrize(
    ("files", "remnant"),
    [("root.before-resize.qcow2", DiskRemnant.KEPT_ROOT_DISK), ("rescue.qcow2", DiskRemnant.RESCUE_DISK)],
)
def test_other_files_that_a_state_left_behind(files: str, remnant: DiskRemnant) -> None:
    (finding,) = find(on(WEB, files))
    assert finding.repair == DropRemnant("a", WEB.name, remnant)


def test_what_an_operation_is_working_on_is_no_drift() -> None:
    uids = frozenset({WEB.uid, DB.uid, GONE.uid, "gone", "x"})
    about_instances = set(FindingKind) - {K.IMAGE_FILE_OF_NO_IMAGE, K.IMAGE_WITHOUT_FILE, K.GROUP_MEMBERSHIP}
    for kind in about_instances:
        assert find(replace(DRIFTS[kind][0], busy=uids)) == (), kind
    snapshot = SnapshotFile(ImageFile(OTHER, 1, 1, DiskFormat.QCOW2), quiesced=True)
    copying = operation(OperationPhase.RUNNING, work=Work(snapshot=snapshot))
    drifted = DRIFTS[K.IMAGE_FILE_OF_NO_IMAGE][0]
    assert find(replace(drifted, operations={copying.name: copying})) == ()


def test_a_copy_of_a_disk_is_not_given_up_when_it_may_be_the_only_one() -> None:
    local = PoolInventory(LOCAL, (), (held(DB, age_s=9 * HOUR_S),))
    findings = find(_with_a(RUNNING, folders=(held(WEB),), local=local))
    assert {finding.kind: finding.repair for finding in findings} == {
        K.DISK_IN_WRONG_POOL: None,
        K.INSTANCE_WITHOUT_DISK: None,
    }


def test_an_offloaded_instance_has_no_disk_anywhere() -> None:
    a = inventory(folders=(held(OFFLOADED, node="a"), held(DB)))
    b = inventory(guest(DB, GuestState.STOPPED))
    drifted = contents(OFFLOADED, inventories={"a": a, "b": b})
    assert [finding.kind for finding in find(drifted)] == [K.DISK_IN_WRONG_POOL]


def test_young_folders_wait_for_their_repair() -> None:
    old, young = DRIFTS[K.DISK_OF_NO_INSTANCE][0], DRIFTS[K.DISK_IN_WRONG_POOL][0]
    assert [bool(finding.must_wait) for drift in (old, young) for finding in find(drift)] == [False, True]


def test_a_resize_holds_both_sizes() -> None:
    assert places_of(RESIZED) == {
        "a": Reservation(WEB.uid, WEB.name, 4, 512, 8, "shared"),
        "b": Reservation(WEB.uid, WEB.name, 1, 1024, 2, "shared"),
    }
    assert places_of(GROWN_HERE) == {"a": Reservation(WEB.uid, WEB.name, 4, 1024, 8, "shared")}
