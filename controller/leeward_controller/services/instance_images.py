"""What makes images of instances, and what gives instances other disks."""

from collections.abc import Mapping

from leeward import keys, names
from leeward.errors import AlreadyExists, FailedPrecondition, NotFound, Violation
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import (
    OperationType,
    PlainArguments,
    RebuildArguments,
    RescueArguments,
    ShelveArguments,
    SnapshotArguments,
    UnshelveArguments,
)
from leeward_controller.operations.submit import Requester
from leeward_controller.records import IMAGES, Records
from leeward_controller.services.beginning import Beginning, Prepared, node_id
from leeward_controller.services.checks import Checks
from leeward_controller.services.fitting import Fitting
from leeward_controller.services.image_properties import check_properties, firmware_of, machine_of
from leeward_controller.services.instances import Target
from leeward_controller.services.shown import ShownOperation

LONGEST_OFFLOAD_DELAY_S = 30 * 86_400.0
_LONGEST_ID = 63
_MOST_SHELVED_NAMES = 100


class InstanceImages:
    """Snapshots, shelving, rescue and rebuilding."""

    def __init__(self, *, records: Records, beginning: Beginning, fitting: Fitting) -> None:
        self._records = records
        self._fitting = fitting
        self._begin = beginning.begin

    async def snapshot(
        self, target: Target, requester: Requester, *, image_id: str, properties: Mapping[str, str]
    ) -> ShownOperation:
        """Make an image of an instance. Raises what `Beginning.begin` does, AlreadyExists (the image)."""
        checks = Checks()
        checks.parsed(lambda: names.check_id(image_id, field="image_id"), "")
        check_properties(checks, properties, "properties")

        async def prepare(instance: Instance) -> Prepared:
            name = names.image_name(instance.project, image_id)
            if await self._records.get(IMAGES, keys.image(name)) is not None:
                raise AlreadyExists.named(name)
            return Prepared(SnapshotArguments(name, dict(properties)))

        return await self._begin(target, OperationType.SNAPSHOT, prepare, requester, checks)

    async def shelve(self, target: Target, requester: Requester, *, offload_delay_s: float | None) -> ShownOperation:
        """Keep an instance as an image, and free its node after a while.

        Raises what `Beginning.begin` does, and FailedPrecondition for one with data disks, which no image holds.
        """
        checks, delay_s = Checks(), offload_delay_s or 0.0
        checks.between(delay_s, 0, LONGEST_OFFLOAD_DELAY_S, "offload_delay", " s")

        async def prepare(instance: Instance) -> Prepared:
            _check_image_holds_all(instance)
            return Prepared(ShelveArguments(await self._free_shelf(instance), delay_s))

        return await self._begin(target, OperationType.SHELVE, prepare, requester, checks)

    async def unshelve(self, target: Target, requester: Requester, *, node: str) -> ShownOperation:
        """Bring a shelved instance back.

        Raises what `Beginning.begin` does, FailedPrecondition (it kept another node), NodeUnfit, NoNodeFits.
        """
        checks = Checks()
        named = node_id(checks, node)

        async def prepare(instance: Instance) -> Prepared:
            if named and instance.node and instance.node != named:
                raise FailedPrecondition(
                    f"{instance.name} still has its place on nodes/{instance.node}; unshelve it there, then migrate it",
                    reason="NOT_OFFLOADED",
                    resource=instance.name,
                )
            warnings = () if instance.node else self._fitting.check(instance, named=named)
            return Prepared(UnshelveArguments(named), warnings)

        return await self._begin(target, OperationType.UNSHELVE, prepare, requester, checks)

    async def rescue(self, target: Target, requester: Requester, *, image: str) -> ShownOperation:
        """Boot another image, or its own anew, with its disk beside. Raises what `Beginning.begin` does, NotFound."""
        checks = _naming(image)

        async def prepare(instance: Instance) -> Prepared:
            chosen = await self._image(image or instance.image, own=instance)
            if chosen is None:
                return Prepared(RescueArguments(instance.image, instance.image_digest, instance.image_format))
            return Prepared(RescueArguments(chosen.name, chosen.digest, chosen.format))

        return await self._begin(target, OperationType.RESCUE, prepare, requester, checks)

    async def unrescue(self, target: Target, requester: Requester) -> ShownOperation:
        """End a rescue. Raises what `Beginning.begin` does."""
        return await self._begin(target, OperationType.UNRESCUE, PlainArguments(), requester)

    async def rebuild(self, target: Target, requester: Requester, *, image: str) -> ShownOperation:
        """Give an instance a new root disk.

        Raises what `Beginning.begin` does, NotFound, InvalidArgument (an image that does not fit the instance).
        """
        checks = _naming(image)

        async def prepare(instance: Instance) -> Prepared:
            chosen = await self._image(image or instance.image, own=instance)
            if chosen is None:
                return Prepared(RebuildArguments(instance.image, instance.image_digest, instance.image_format))
            _check_fits(instance, chosen)
            return Prepared(RebuildArguments(chosen.name, chosen.digest, chosen.format))

        return await self._begin(target, OperationType.REBUILD, prepare, requester, checks)

    async def _image(self, name: str, *, own: Instance) -> Image | None:
        """The image of that name; None when it is the instance's own, whose record is gone but whose file is not.

        Raises NotFound.
        """
        stored = await self._records.get(IMAGES, keys.image(name))
        if stored is None and name != own.image:
            raise NotFound.named(name)
        return stored.value if stored else None

    async def _free_shelf(self, instance: Instance) -> str:
        """The name of the image to shelve it as: its own with `-shelved`, or the first one counted on that is free."""
        project, instance_id = names.project_instance(instance.name)
        for number in range(1, _MOST_SHELVED_NAMES + 1):
            suffix = "-shelved" if number == 1 else f"-shelved-{number}"
            image_id = instance_id[: _LONGEST_ID - len(suffix)].rstrip("-") + suffix
            name = names.image_name(project, image_id)
            if await self._records.get(IMAGES, keys.image(name)) is None:
                return name
        taken = names.image_name(project, f"{instance_id}-shelved")
        raise AlreadyExists(f"{taken} exists already, and so do all names up to -{_MOST_SHELVED_NAMES}", resource=taken)


def _naming(image: str) -> Checks:
    checks = Checks()
    if image:
        checks.parsed(lambda: names.project_image(image, field="image"), ("", ""))
    return checks


def _check_fits(instance: Instance, image: Image) -> None:
    """Raises InvalidArgument for an image that is too large for the disk, or made for another kind of machine."""
    checks = Checks()
    disk_gib = instance.resources.disk_gib
    checks.that(
        image.minimum_disk_gib <= disk_gib,
        "image",
        f"{image.name} needs a disk of {image.minimum_disk_gib} GiB, {instance.name} has one of {disk_gib} GiB",
    )
    for wanted, has in (
        (machine_of(image, field="image"), instance.machine),
        (firmware_of(image, field="image"), instance.firmware),
    ):
        checks.that(wanted == has, "image", f"{image.name} is for {wanted}, {instance.name} has {has}")
    checks.done()


def _check_image_holds_all(instance: Instance) -> None:
    """Raises FailedPrecondition (reason HAS_DATA_DISKS) for disks that would be lost with the node's place."""
    if instance.data_disks_gib:
        count = len(instance.data_disks_gib)
        why = f"it has {count} data disk{'s' if count > 1 else ''}, which would not be part of its image"
        raise FailedPrecondition(
            f"{instance.name} cannot be shelved: {why}",
            reason="HAS_DATA_DISKS",
            violations=[Violation("DATA_DISKS", instance.name, why)],
            resource=instance.name,
        )
