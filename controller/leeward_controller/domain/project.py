"""A project: whose instances and images they are, and how many there may be."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime

from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, Resources


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of a project; None is no limit."""

    instances: int | None = None
    vcpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None
    images: int | None = None
    image_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project has, or what is asked for in addition: counted by the same measures as a `Quota`."""

    instances: int = 0
    vcpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    images: int = 0
    image_bytes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Project:
    """One project and its limits. One without a record has none."""

    project: str
    uid: str
    quota: Quota
    create_time: datetime
    labels: dict[str, str] = field(default_factory=dict)
    request_id: str = ""

    @property
    def name(self) -> str:
        """`projects/{project}`."""
        return f"projects/{self.project}"


@dataclass(frozen=True, slots=True)
class Admission:
    """What was last let into a project with limits. Each check replaces the one that it read before it counted."""

    project: str
    what: str


@dataclass(frozen=True, slots=True)
class Excess:
    """One measure by which a request would go over a limit."""

    measure: str
    limit: int
    used: int
    asked: int


def usage_of_instance(instance: Instance, *, becoming: Resources | None = None) -> Usage:
    """What an instance counts for, from its being asked for until its record is gone, in whatever state.

    While it is being resized, and until that is confirmed or reverted, it counts for the larger of both sizes by each
    measure, so that neither way can fail for want of quota. `becoming` is the size of a resize that is under way.
    """
    sizes = [instance.resources]
    if instance.resize is not None:
        sizes.append(instance.resize.resources)
    if becoming is not None:
        sizes.append(becoming)
    return Usage(
        instances=1,
        vcpus=max(size.vcpus for size in sizes),
        memory_mib=max(size.memory_mib for size in sizes),
        disk_gib=max(size.disk_gib for size in sizes) + sum(instance.data_disks_gib),
    )


def usage_of_image(size_bytes: int) -> Usage:
    """What an image counts for."""
    return Usage(images=1, image_bytes=size_bytes)


def usage_of_images(images: Iterable[Image]) -> Usage:
    """What images count for together."""
    total = Usage()
    for image in images:
        total += usage_of_image(image.size_bytes)
    return total


def growth(before: Usage, after: Usage) -> Usage:
    """By how much each measure grows; nothing is given back."""
    return replace(Usage(), **{f.name: max(0, getattr(after, f.name) - getattr(before, f.name)) for f in fields(Usage)})


def is_limited(quota: Quota, asked: Usage) -> bool:
    """Whether there is a limit to any measure that is asked for."""
    return any(getattr(quota, each.name) is not None and getattr(asked, each.name) for each in fields(Usage))


def excess(quota: Quota, used: Usage, asked: Usage) -> tuple[Excess, ...]:
    """The limits that `asked` would go over; one that asks for nothing of a measure cannot go over its limit."""
    found = []
    for each in fields(Usage):
        limit, more = getattr(quota, each.name), getattr(asked, each.name)
        there = getattr(used, each.name)
        if limit is not None and more and there + more > limit:
            found.append(Excess(each.name, limit, there, more))
    return tuple(found)
