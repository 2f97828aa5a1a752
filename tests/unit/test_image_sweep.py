"""Which image files the sweep takes away: those that nobody needs, and never one that somebody may be about to need."""

from dataclasses import replace
from datetime import UTC, datetime

from leeward.agent.types import DiskFormat, HeldImage, ImageFile, Inventory, PoolInventory, SnapshotFile
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, InstanceState, Resources, Shelf
from leeward_controller.domain.operation import (
    Operation,
    OperationPhase,
    OperationType,
    PlainArguments,
    RebuildArguments,
    Work,
)
from leeward_controller.housekeeping.image_sweep import unneeded_files

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR_S = 3600.0
KNOWN, SHELVED, MADE, WANTED, NOBODYS = ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64)


def held(digest: str, *users: str, age_s: float = HOUR_S) -> HeldImage:
    return HeldImage(digest, 1, users, age_s)


def pool(pool_id: str, *images: HeldImage) -> Inventory:
    return Inventory((PoolInventory(pool_id, images, ()),), (), (), ())


INSTANCE = Instance(
    name="projects/p/instances/web",
    uid="web",
    state=InstanceState.ACTIVE,
    flavor="small",
    resources=Resources(1, 1, 1),
    image="projects/p/images/tiny",
    image_digest=KNOWN,
    image_format=DiskFormat.RAW,
    pool_id="local-a",
    nics=(),
    create_time=NOW,
    update_time=NOW,
    created_by="client:alice",
)
OFFLOADED = replace(
    INSTANCE, uid="off", image_digest=SHELVED, shelf=Shelf("projects/p/images/s", SHELVED, DiskFormat.QCOW2)
)
IMAGE = Image("projects/p/images/tiny", "i", KNOWN, DiskFormat.RAW, 1, 1, ("shared",), NOW, "client:alice")
SNAPSHOT = Operation(
    id="s",
    type=OperationType.SNAPSHOT,
    instance=INSTANCE.name,
    instance_uid=INSTANCE.uid,
    arguments=PlainArguments(),
    phase=OperationPhase.RUNNING,
    step="publish",
    requested_by="client:alice",
    create_time=NOW,
    update_time=NOW,
    work=Work(snapshot=SnapshotFile(ImageFile(MADE, 1, 1, DiskFormat.QCOW2), quiesced=False)),
)
REBUILD = replace(SNAPSHOT, id="r", arguments=RebuildArguments("i", WANTED, DiskFormat.RAW), work=Work())


def swept(*inventories: Inventory, instances: tuple[Instance, ...] = (INSTANCE, OFFLOADED)) -> list[tuple[str, str]]:
    by_node = {f"node-{index}": each for index, each in enumerate(inventories)}
    found = unneeded_files(by_node, [IMAGE], instances, [SNAPSHOT, REBUILD])
    return [(file.pool_id, file.digest) for file in found]


def test_what_no_image_has_goes_once_for_each_pool() -> None:
    seen_by_two = (pool("shared", held(NOBODYS), held(KNOWN)), pool("shared", held(NOBODYS), held(KNOWN)))
    assert swept(*seen_by_two, pool("local-a", held(NOBODYS))) == [("shared", NOBODYS), ("local-a", NOBODYS)]


def test_what_is_used_young_or_in_work_stays() -> None:
    assert swept(pool("shared", held(NOBODYS, "uid"), held(NOBODYS, age_s=HOUR_S - 1))) == []
    assert swept(pool("shared", held(SHELVED), held(MADE), held(WANTED))) == []
    image_of_shelf = replace(IMAGE, digest=SHELVED)
    assert unneeded_files({"a": pool("shared", held(SHELVED))}, [image_of_shelf], [OFFLOADED], []) == []


def test_copies_in_other_pools_go_unless_an_operation_may_take_them() -> None:
    copies = pool("local-a", held(KNOWN)), pool("local-b", held(KNOWN, "web"))
    assert swept(*copies) == [("local-a", KNOWN)]
    launching = replace(INSTANCE, current_operation="operations/o")
    assert swept(*copies, instances=(launching,)) == []
