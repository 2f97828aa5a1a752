"""What a step's end changes of what is held: places on nodes, memberships of groups, room in a project's quota."""

from dataclasses import replace

from leeward import keys
from leeward.errors import AlreadyExists
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance, Resources
from leeward_controller.domain.node import NodeAllocation, Reservation
from leeward_controller.domain.operation import Operation
from leeward_controller.operations.admission import Gatekeeper
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.step import Advance
from leeward_controller.records import ALLOCATIONS, GROUPS, IMAGES, Commit, Stored
from leeward_controller.scheduler.candidates import candidate
from leeward_controller.scheduler.groups import why_not_with
from leeward_controller.scheduler.placement import PlacementRequest, plan_placement
from leeward_controller.scheduler.requests import companions_in


class PlaceTaken(Exception):
    """The place was chosen from a lagging view: it has no room any more, or another member of the group came first."""


class Holdings:
    """Adds to a commit what its step takes and gives back, each compared with what is there."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._records = surroundings.records
        self._view = surroundings.view
        self._policy = surroundings.policy
        self._gatekeeper = Gatekeeper(records=surroundings.records, view=surroundings.view)

    async def compose(
        self, commit: Commit, new: Operation, advance: Advance, instance: Instance | None, *, since: int | None
    ) -> None:
        """Rest on what there was at revision `since`, at which the operation was last written, or later (None: now).

        Raises PlaceTaken, AlreadyExists (image), ResourceExhausted (quota of images).
        """
        if advance.reservation is not None:
            # Any version will do: what is added is compared with it.
            await self._reserve(commit, new, advance, instance, since=None if since is None else 0)
        for node in dict.fromkeys(advance.release_from):
            found = await self.allocation(node, since=since)
            if found.value.holds(new.instance_uid):
                commit.replace(found, found.value.without(new.instance_uid))
        if instance is not None and instance.group:
            await self._move_in_group(commit, advance, instance)
        if advance.put_image is not None:
            await self._put_image(commit, advance.put_image)
        if advance.drop_image:
            image = await self._records.get(IMAGES, keys.image(advance.drop_image))
            if image is not None:
                commit.remove(image)

    async def allocation(self, node: str, *, since: int | None) -> Stored[NodeAllocation]:
        """What is held on a node, as `Records.get_since`; revision 0 when nothing ever was."""
        key = keys.allocation(node)
        found = await self._records.get_since(ALLOCATIONS, key, since=since)
        return found or Stored(key, NodeAllocation(node), 0, 0)

    async def _reserve(
        self, commit: Commit, new: Operation, advance: Advance, instance: Instance | None, *, since: int | None
    ) -> None:
        assert advance.reservation is not None
        found = await self.allocation(advance.reserve_on, since=since)
        wanted = advance.reservation
        if new.work.target_pool_id and advance.reserve_on == new.work.target_node:
            wanted = replace(wanted, pool_id=new.work.target_pool_id)
        held = found.value.of(wanted.instance_uid)
        if instance is not None and not (held is not None and held.covers(wanted)):
            self._check_room(found.value, wanted)
        commit.replace(found, found.value.with_reservation(wanted))

    def _check_room(self, allocation: NodeAllocation, wanted: Reservation) -> None:
        """The view that the choice was made from may lag; the allocation just read is what the transaction compares.

        What other nodes' instances hold in a shared pool is taken from the view: disks are thin, so a little more
        promised there than the policy has it for a moment does no harm, and all nodes writing one record would.
        """
        found = candidate(self._view, allocation.node)
        here = [] if found is None else [replace(found, allocation=allocation)]
        resources = Resources(wanted.vcpus, wanted.memory_mib, wanted.disk_gib)
        request = PlacementRequest(wanted.instance_uid, resources, wanted.pool_id)
        placement = plan_placement(here, request, policy=self._policy)
        if not placement.ranked:
            raise PlaceTaken(f"nodes/{allocation.node}: {placement.rejected.get(allocation.node, 'is gone')}")

    async def _move_in_group(self, commit: Commit, advance: Advance, instance: Instance) -> None:
        """Write where the member holds places, and require that a hard rule allows the one that it takes."""
        if advance.reservation is None and not advance.release_from and not advance.remove_instance:
            return
        found = await self._records.get(GROUPS, keys.group(instance.group))
        if found is None:
            return
        group = found.value
        if advance.remove_instance:
            group = group.without(instance.uid)
        if advance.reservation is not None:
            member = group.member(instance.uid)
            if member is None or advance.reserve_on not in member.nodes:
                why = why_not_with(companions_in(self._view, group, instance.uid), advance.reserve_on)
                if why:
                    raise PlaceTaken(f"nodes/{advance.reserve_on}: {why}")
            group = group.with_member(instance.uid, instance.name, on=advance.reserve_on)
        for node in advance.release_from:
            group = group.without_place(instance.uid, node)
        if group != found.value:
            commit.replace(found, group)

    async def _put_image(self, commit: Commit, image: Image) -> None:
        if await self._records.get(IMAGES, keys.image(image.name)) is not None:
            raise AlreadyExists.named(image.name)
        await self._gatekeeper.admit_image(commit, image.name, image.size_bytes)
        commit.create(keys.image(image.name), image)
