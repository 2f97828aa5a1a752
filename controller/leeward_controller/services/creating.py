"""Making an instance of what was asked for: checks, references, addresses, and whether any node can take it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from leeward import keys, names
from leeward.agent.types import CloudInit, Nic
from leeward.clock import Clock, Ids
from leeward.errors import InvalidArgument, NotFound
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.domain.instance import (
    Instance,
    InstanceState,
    PlacementRules,
    Readiness,
    Resources,
    RestartPriority,
    Storage,
)
from leeward_controller.records import FLAVORS, GROUPS, IMAGES, Records
from leeward_controller.services.checks import Checks
from leeward_controller.services.creating_checks import (
    check_bridges,
    check_cloud_init,
    check_cpu_model,
    check_data_disks,
    check_group,
    check_placement,
    check_readiness,
)
from leeward_controller.services.fitting import Fitting
from leeward_controller.services.image_properties import firmware_of, machine_of


@dataclass(frozen=True, slots=True)
class NewInstance:
    """An instance to launch, as it was asked for: names are resource names, not yet checked."""

    parent: str
    instance_id: str
    flavor: str
    image: str
    bridges: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    restart_on_failure: bool = True
    restart_priority: RestartPriority = RestartPriority.MEDIUM
    readiness: Readiness | None = None
    cloud_init: CloudInit | None = None
    data_disks_gib: tuple[int, ...] = ()
    storage: Storage = Storage.ANY
    placement: PlacementRules = field(default_factory=PlacementRules)
    cpu_model: str = ""
    group: str = ""
    node: str = ""
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class _Checked:
    name: str
    flavor_id: str
    image_name: str
    node: str


@dataclass(frozen=True, slots=True)
class MadeInstance:
    """A record that is ready to be launched, and what whoever asked should know, a sentence each."""

    instance: Instance
    warnings: tuple[str, ...]


class InstanceMaker:
    """Turns a request into an instance record that is ready to be launched."""

    def __init__(self, *, records: Records, fitting: Fitting, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._fitting = fitting
        self._clock = clock
        self._ids = ids

    def check(self, new: NewInstance, request_id: str) -> _Checked:
        """Raises InvalidArgument with every wrong field."""
        checks = Checks()
        project = checks.parsed(lambda: names.project(new.parent), "")
        instance_id = checks.parsed(lambda: names.check_id(new.instance_id, field="instance_id"), "")
        flavor_id = checks.parsed(lambda: names.flavor(new.flavor, field="instance.flavor"), "")
        checks.parsed(lambda: names.project_image(new.image, field="instance.image"), ("", ""))
        node = checks.parsed(lambda: names.node(new.node, field="node"), "") if new.node else ""
        checks.labels(new.labels, "instance.labels")
        check_bridges(checks, new.bridges)
        check_data_disks(checks, new.data_disks_gib)
        check_cloud_init(checks, new.cloud_init)
        check_placement(checks, new.placement)
        check_cpu_model(checks, new.cpu_model)
        check_group(checks, new.group, project=project)
        check_readiness(checks, new.readiness)
        checks.request_id(request_id)
        checks.done()
        return _Checked(names.instance_name(project, instance_id), flavor_id, new.image, node)

    async def make(self, new: NewInstance, *, request_id: str, creator: str) -> MadeInstance:
        """The record to launch, and what there is to warn of; node and pool are chosen by the operation.

        Raises InvalidArgument (all wrong fields), NotFound (flavor, image or group), FailedPrecondition (no baseline),
        NoNodeFits and NodeUnfit (by what this replica knows of the nodes now; one violation a node).
        """
        checked = self.check(new, request_id)
        flavor = await self._flavor(checked.flavor_id)
        image = await self._image(checked.image_name)
        await self._check_group(new.group)
        if image.minimum_disk_gib > flavor.disk_gib:
            raise InvalidArgument.field(
                "instance.flavor",
                f"{flavor.name} has a disk of {flavor.disk_gib} GiB, {image.name} needs {image.minimum_disk_gib} GiB",
            )
        if not image.pool_ids:
            raise NotFound(f"{image.name} lies in no pool", resource=image.name)
        instance = self._record(new, name=checked.name, flavor=flavor, image=image, creator=creator)
        return MadeInstance(instance, self._fitting.check(instance, named=checked.node))

    def _record(self, new: NewInstance, *, name: str, flavor: Flavor, image: Image, creator: str) -> Instance:
        uid, now = self._ids.new(), self._clock.now()
        return Instance(
            name=name,
            uid=uid,
            state=InstanceState.BUILDING,
            flavor=flavor.flavor,
            resources=Resources(flavor.vcpus, flavor.memory_mib, flavor.disk_gib),
            image=image.name,
            image_digest=image.digest,
            image_format=image.format,
            pool_id="",
            nics=tuple(Nic(mac_address(uid, index), bridge) for index, bridge in enumerate(new.bridges)),
            create_time=now,
            update_time=now,
            created_by=creator,
            labels=dict(new.labels),
            restart_on_failure=new.restart_on_failure,
            restart_priority=new.restart_priority,
            readiness=new.readiness,
            storage=new.storage,
            data_disks_gib=new.data_disks_gib,
            machine=machine_of(image, field="instance.image"),
            firmware=firmware_of(image, field="instance.image"),
            cpu_model=self._fitting.cpu_model(new.cpu_model),
            cloud_init=new.cloud_init,
            group=new.group,
            placement=new.placement,
        )

    async def _check_group(self, name: str) -> None:
        if name and await self._records.get(GROUPS, keys.group(name)) is None:
            raise NotFound.named(name)

    async def _flavor(self, flavor_id: str) -> Flavor:
        stored = await self._records.get(FLAVORS, keys.flavor(flavor_id))
        if stored is None:
            raise NotFound.named(f"flavors/{flavor_id}")
        return stored.value

    async def _image(self, name: str) -> Image:
        stored = await self._records.get(IMAGES, keys.image(name))
        if stored is None:
            raise NotFound.named(name)
        return stored.value


def mac_address(instance_uid: str, index: int) -> str:
    """The address of an instance's interface: decided by its uid, unicast and locally administered (IEEE 802)."""
    octets = bytearray(hashlib.sha256(f"{instance_uid}/{index}".encode()).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")
