"""Which image files are needed, and the drift between records and image files."""

from collections.abc import Iterable, Iterator

from leeward_controller.audit.model import OLD_ENOUGH_S, Contents, DeleteImageFile, Finding, FindingKind
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation, RebuildArguments, RescueArguments


def digests_of(instance: Instance) -> set[str]:
    """The images that an instance's disks are made of, or will be."""
    kept = (instance.rescue, instance.shelf)
    return {instance.image_digest, *(each.digest for each in kept if each is not None)}


def digests_in_work(operations: Iterable[Operation]) -> set[str]:
    """The images that operations under way make or take."""
    found: set[str] = set()
    for operation in operations:
        if operation.phase.ended:
            continue
        if operation.work.snapshot is not None:
            found.add(operation.work.snapshot.image.digest)
        if isinstance(operation.arguments, RebuildArguments | RescueArguments):
            found.add(operation.arguments.digest)
    return found


def needed_digests(
    images: Iterable[Image], instances: Iterable[Instance], operations: Iterable[Operation]
) -> frozenset[str]:
    """The images whose files may not go from everywhere."""
    needed = {image.digest for image in images} | digests_in_work(operations)
    for instance in instances:
        needed |= digests_of(instance)
    return frozenset(needed)


def image_findings(contents: Contents) -> Iterator[Finding]:
    """Image files of no image, and images without their files.

    What an upload or a snapshot made has no record for a while, and when it fails the file is swept away later: only
    one that lies there for long is a finding.
    """
    needed = needed_digests(contents.images, contents.instances.values(), contents.operations.values())
    pools = contents.pools()
    for pool_id, pool in sorted(pools.items()):
        for held in pool.inventory.images:
            if held.digest in needed or held.users or held.age_s < OLD_ENOUGH_S:
                continue
            told = f"has an image file of {held.size_bytes} bytes and SHA-256 {held.digest} that no image has"
            delete = DeleteImageFile(pool.nodes[0], pool_id, held.digest, held.age_s)
            yield Finding(FindingKind.IMAGE_FILE_OF_NO_IMAGE, f"pools/{pool_id}", told, delete)
    present = {pool_id: {held.digest for held in pool.inventory.images} for pool_id, pool in pools.items()}
    for image in sorted(contents.images, key=lambda image: image.name):
        for pool_id in image.pool_ids if image.name not in contents.changed_images else ():
            if pool_id in present and image.digest not in present[pool_id]:
                yield Finding(
                    FindingKind.IMAGE_WITHOUT_FILE,
                    image.name,
                    f"its file (SHA-256 {image.digest}) is not in pool {pool_id}",
                    advice="delete the image and upload it again",
                )
