"""Making an instance of what was asked for: checks, references, a pool, addresses, and whether any node can take it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from leeward import keys, names
from leeward.agent.types import Nic
from leeward.clock import Clock, Ids
from leeward.errors import InvalidArgument, NodeUnfit, NoNodeFits, NotFound
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.records import FLAVORS, IMAGES, Records
from leeward_controller.scheduler.candidates import candidates
from leeward_controller.scheduler.placement import (
    Placement,
    PlacementPolicy,
    PlacementRequest,
    choose,
    plan_placement,
)
from leeward_controller.services.checks import Checks
from leeward_controller.view import ClusterView

MAX_NICS = 8
_MAX_BRIDGE_LENGTH = 15  # Linux: IFNAMSIZ is 16 with its final zero.


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
    node: str = ""
    unsupported: tuple[str, ...] = ()  # Fields that were set and that this version cannot honour.
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class _Checked:
    name: str
    flavor_id: str
    image_name: str
    node: str


class InstanceMaker:
    """Turns a request into an instance record that is ready to be launched."""

    def __init__(self, *, records: Records, view: ClusterView, policy: PlacementPolicy, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._view = view
        self._policy = policy
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
        count = len(new.bridges)
        checks.that(
            count <= MAX_NICS, "instance.network_interfaces", f"has {count} entries, at most {MAX_NICS} are allowed"
        )
        for index, bridge in enumerate(new.bridges):
            checks.that(
                _is_bridge(bridge),
                f"instance.network_interfaces[{index}].bridge",
                f"{bridge!r} is not empty and not 1 to {_MAX_BRIDGE_LENGTH} characters of A-Z, a-z, 0-9 and '._-'",
            )
        for path in new.unsupported:
            checks.that(False, path, "is not supported by this version; leave it unset")
        checks.request_id(request_id)
        checks.done()
        return _Checked(names.instance_name(project, instance_id), flavor_id, new.image, node)

    async def make(self, new: NewInstance, *, request_id: str, creator: str) -> Instance:
        """The record to launch.

        Raises InvalidArgument (all wrong fields), NotFound (flavor or image), NoNodeFits and NodeUnfit (by what this
        replica knows of the nodes now; one violation a node).
        """
        checked = self.check(new, request_id)
        flavor = await self._flavor(checked.flavor_id)
        image = await self._image(checked.image_name)
        if image.minimum_disk_gib > flavor.disk_gib:
            raise InvalidArgument.field(
                "instance.flavor",
                f"{flavor.name} has a disk of {flavor.disk_gib} GiB, {image.name} needs {image.minimum_disk_gib} GiB",
            )
        uid, now = self._ids.new(), self._clock.now()
        resources = Resources(flavor.vcpus, flavor.memory_mib, flavor.disk_gib)
        return Instance(
            name=checked.name,
            uid=uid,
            state=InstanceState.BUILDING,
            flavor=flavor.flavor,
            resources=resources,
            image=image.name,
            image_digest=image.digest,
            image_format=image.format,
            pool_id=self._pool(image, resources, node=checked.node),
            nics=tuple(Nic(mac_address(uid, index), bridge) for index, bridge in enumerate(new.bridges)),
            create_time=now,
            update_time=now,
            created_by=creator,
            labels=dict(new.labels),
            restart_on_failure=new.restart_on_failure,
        )

    def _pool(self, image: Image, resources: Resources, *, node: str) -> str:
        """The pool to use of those that hold the image: the first with a node that can take the instance."""
        refusals: list[NoNodeFits | NodeUnfit] = []
        for pool_id in image.pool_ids:
            if not self._view.synced:
                # Nothing is known of the nodes just now; the operation will see.
                return pool_id
            request = PlacementRequest("", resources, pool_id, node=node)
            try:
                choose(self._plan(request), request)
            except (NoNodeFits, NodeUnfit) as error:
                refusals.append(error)
            else:
                return pool_id
        if not refusals:
            raise NotFound(f"{image.name} lies in no pool", resource=image.name)
        raise refusals[0]

    def _plan(self, request: PlacementRequest) -> Placement:
        return plan_placement(candidates(self._view), request, policy=self._policy)

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


def _is_bridge(name: str) -> bool:
    if not name:
        return True
    plain = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    return plain and len(name) <= _MAX_BRIDGE_LENGTH
