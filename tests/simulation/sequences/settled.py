"""What must hold once nothing is going on: all that is held, runs and lies in pools is what the records explain."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from leeward.agent.disk_files import KEPT_ROOT_DISK, MEMORY_FILE, RESCUE_DISK, ROOT_DISK, SEED_DISK
from leeward.agent.types import Firmware, GuestState, Inventory, StopCause
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance, InstanceState, Resources
from leeward_controller.domain.project import Quota, Usage
from leeward_controller.housekeeping.image_sweep import unneeded_files
from leeward_controller.operations.admission import read_usage
from leeward_controller.records import GROUPS, IMAGES, OPERATIONS
from tests.simulation.story import Story

_S = InstanceState
_OLD_S = 7200.0
_BOOKKEEPING = frozenset({"disk.json", "run-epoch"})
_MEMORY_STATES = {_S.ACTIVE: GuestState.RUNNING, _S.RESCUED: GuestState.RUNNING, _S.PAUSED: GuestState.PAUSED}

Held = tuple[int, int, int, str]
"""What one instance holds of a node: vCPUs, MiB of memory, GiB of disk, and the pool that this is in."""


@dataclass(frozen=True, slots=True)
class Left:
    """One drift in words. `on` is the node that has kept something to itself, if that is what it is."""

    text: str
    on: str = ""


class Drift:
    """Compares the records of a story's cluster with all that is there, without asking the controllers."""

    def __init__(self, story: Story) -> None:
        self._story = story

    async def now(self) -> list[Left]:
        """All drift but that of image files, which may lie around for a while."""
        inventories = await self._inventories()
        texts: list[str | Left] = [
            *self._places(),
            *self._groups(),
            *self._guests(),
            *self._consoles(inventories),
            *self._folders(inventories),
            *self._parts(),
            *self._open_operations(),
        ]
        plain = self._story.narrator.plain
        return [Left(plain(each)) if isinstance(each, str) else replace(each, text=plain(each.text)) for each in texts]

    async def of_images(self) -> list[str]:
        """Drift of image files, after a sweep."""
        return [self._story.narrator.plain(line) for line in self._images(await self._inventories())]

    async def sweep(self) -> None:
        """What the leader does every ten minutes with files that are old enough."""
        files = unneeded_files(
            await self._inventories(),
            self._recorded(),
            self._story.instances().values(),
            self._story.all_of(OPERATIONS),
        )
        for file in files:
            agent = self._story.cluster.nodes[file.node].agent
            assert agent is not None
            await agent.delete_image(pool_id=file.pool_id, digest=file.digest)

    def make_old(self) -> None:
        """Have all files in pools lain there for hours, so that what waits for that is done."""
        for contents in self._story.cluster.pools.values():
            for key in (*contents.images, *contents.folders):
                contents.changed_s[key] = contents.changed_s.get(key, 0.0) - _OLD_S

    async def mend(self) -> list[str]:
        """What an audit does not mend although it should."""
        report = await self._story.services().audit.audit(repair=True, principal="client:ops")
        return [
            self._story.narrator.plain(f"not mended: {each.finding.kind} {each.finding.explanation}: {each.trouble}")
            for each in report.findings
            if not each.repaired
        ]

    async def audited(self) -> list[str]:
        """What an audit finds."""
        report = await self._story.services().audit.audit(repair=False, principal="client:ops")
        found = [f"{each.finding.kind} {each.finding.subject}: {each.finding.explanation}" for each in report.findings]
        found += [f"{node} was not audited: {why}" for node, why in report.unreached.items()]
        return [self._story.narrator.plain(line) for line in found]

    async def over_quota(self, project: str, quota: Quota) -> list[str]:
        """Where the project's use is not what its instances and images say, or is above its limits."""
        core = self._story.core().core
        assert core is not None
        used, counted = await read_usage(core.records, project), self._counted()
        wrong = [] if used == counted else [f"the project is said to use {used}, and uses {counted}"]
        for measure in ("instances", "vcpus", "memory_mib"):
            limit = getattr(quota, measure)
            if limit is not None and getattr(used, measure) > limit:
                wrong.append(f"the project uses {getattr(used, measure)} {measure}, of {limit}")
        return wrong

    def _counted(self) -> Usage:
        total = Usage()
        for instance in self._story.instances().values():
            size = instance.resources
            if instance.resize is not None:
                size = _larger(size, instance.resize.resources)
            disk_gib = size.disk_gib + sum(instance.data_disks_gib)
            total += Usage(instances=1, vcpus=size.vcpus, memory_mib=size.memory_mib, disk_gib=disk_gib)
        for image in self._recorded():
            total += Usage(images=1, image_bytes=image.size_bytes)
        return total

    def _recorded(self) -> list[Image]:
        return self._story.all_of(IMAGES)

    async def _inventories(self) -> dict[str, Inventory]:
        nodes = sorted(self._story.cluster.nodes.items())
        return {name: await node.agent.take_inventory() for name, node in nodes if node.agent is not None}

    def _places(self) -> Iterator[str]:
        wanted = {
            (node, instance.uid): held
            for instance in self._story.instances().values()
            for node, held in places_of(instance).items()
        }
        found: dict[tuple[str, str], Held] = {}
        for node, allocation in self._story.allocations().items():
            for each in allocation.reservations:
                if (node, each.instance_uid) in found:
                    yield f"{node} is reserved twice for {each.instance_uid}"
                found[node, each.instance_uid] = (each.vcpus, each.memory_mib, each.disk_gib, each.pool_id)
        for node, uid in sorted(wanted.keys() | found.keys()):
            if wanted.get((node, uid)) != found.get((node, uid)):
                yield f"{node} holds {found.get((node, uid))} for {uid}, and should hold {wanted.get((node, uid))}"

    def _groups(self) -> Iterator[str]:
        instances = self._story.instances()
        groups: list[Group] = self._story.all_of(GROUPS)
        for group in groups:
            wanted = {
                uid: tuple(sorted(places_of(instance)))
                for uid, instance in instances.items()
                if instance.group == group.name
            }
            found = {member.instance_uid: member.nodes for member in group.members}
            if wanted != found:
                yield f"{group.name} has {found}, and should have {wanted}"

    def _guests(self) -> Iterator[str | Left]:
        instances = self._story.instances()
        for name, node in sorted(self._story.cluster.nodes.items()):
            for uid, guest in sorted(node.host.guests.items()):
                instance = instances.get(uid)
                if instance is None or instance.node != name:
                    told = f"{uid} is {guest.state} on {name}, where it does not belong"
                    yield told if guest.active else Left(told, on=name)
        for uid, instance in sorted(instances.items()):
            wanted = wanted_guest(instance)
            there = self._story.cluster.nodes[instance.node].host.guests.get(uid) if instance.node else None
            found = there.state if there is not None and there.active else GuestState.STOPPED
            if instance.state is _S.RESCUED and there is not None and there.stop_cause is StopCause.GUEST:
                continue  # A rescue system that shut itself down is left so.
            if found is not wanted:
                where = instance.node or "no node"
                yield f"{uid} is {instance.state} on {where}; its guest is {found} and should be {wanted}"

    def _consoles(self, inventories: dict[str, Inventory]) -> Iterator[str]:
        instances = self._story.instances()
        for node, inventory in inventories.items():
            for uid in (*inventory.sockets, *inventory.console_logs):
                if uid not in instances or instances[uid].node != node:
                    yield f"{node} has a socket or console log of {uid}, which is not on it"
            if attached := self._story.cluster.nodes[node].host.attached_consoles:
                yield f"somebody is attached to consoles on {node}: {attached}"

    def _folders(self, inventories: dict[str, Inventory]) -> Iterator[str | Left]:
        wanted = {
            (pool_id, instance.uid): files
            for instance in self._story.instances().values()
            for pool_id, files in folders_of(instance).items()
        }
        found: dict[tuple[str, str], set[str]] = {}
        instances = self._story.instances()
        for inventory in inventories.values():
            for pool in inventory.pools:
                for held in pool.guests:
                    found[pool.pool_id, held.uid] = set(held.files) - _BOOKKEEPING
                    instance = instances.get(held.uid)
                    if instance is not None and instance.pool_id == pool.pool_id:
                        yield from _epoch(instance, epoch=held.run_epoch, node=held.node)
        for pool_id, uid in sorted(wanted.keys() | found.keys()):
            files, expected = found.get((pool_id, uid)), wanted.get((pool_id, uid))
            if files is None or expected is None or files != expected:
                there = "no folder" if files is None else sorted(files)
                should = "no folder" if expected is None else sorted(expected)
                told = f"pool {pool_id} has {there} of {uid}, and should have {should}"
                yield Left(told, on=pool_id.removeprefix("local-")) if expected is None else told

    def _parts(self) -> Iterator[str]:
        for pool_id, contents in sorted(self._story.cluster.pools.items()):
            for part in contents.parts:
                if part.startswith("guest "):
                    yield f"pool {pool_id} has a part of {part}"

    def _open_operations(self) -> Iterator[str]:
        for instance in self._story.instances().values():
            if instance.current_operation:
                yield f"{instance.name} still has {instance.current_operation}"
        for node in self._story.cluster.nodes:
            if self._story.node(node).current_operation:
                yield f"{node} still has {self._story.node(node).current_operation}"
        for operation in self._story.running_operations():
            yield f"{operation.type} {operation.subject} is at {operation.step} ({operation.phase})"

    def _images(self, inventories: dict[str, Inventory]) -> Iterator[str]:
        homes = {(pool_id, image.digest): image.name for image in self._recorded() for pool_id in image.pool_ids}
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for inventory in inventories.values():
            for pool in inventory.pools:
                found |= {(pool.pool_id, held.digest): held.users for held in pool.images}
        # Of an image whose record is gone, all copies stay while an instance is made of it.
        kept = {instance.image_digest for instance in self._story.instances().values()} - {each for _, each in homes}
        for (pool_id, digest), users in sorted(found.items()):
            if not users and (pool_id, digest) not in homes and digest not in kept:
                yield f"pool {pool_id} has the image {digest[:12]}, which nothing needs there"
        for (pool_id, digest), name in sorted(homes.items()):
            if (pool_id, digest) not in found:
                yield f"{name} is not in pool {pool_id}"


def wanted_guest(instance: Instance) -> GuestState:
    """What an instance's guest has to be."""
    state = instance.resize.state_before if instance.resize is not None and instance.state is _S.RESIZED else None
    return _MEMORY_STATES.get(state or instance.state, GuestState.STOPPED)


def places_of(instance: Instance) -> dict[str, Held]:
    """What has to be held for an instance, by node: its own place, and the one that a resize kept."""
    data_gib, size = sum(instance.data_disks_gib), instance.resources
    places: dict[str, Held] = {}
    kept = instance.resize
    if instance.node:
        if kept is not None and kept.node == instance.node:
            size = _larger(size, kept.resources)
        places[instance.node] = (size.vcpus, size.memory_mib, size.disk_gib + data_gib, instance.pool_id)
    if kept is not None and kept.node != instance.node:
        old = kept.resources
        places[kept.node] = (old.vcpus, old.memory_mib, old.disk_gib + data_gib, kept.pool_id)
    return places


def folders_of(instance: Instance) -> dict[str, set[str]]:
    """The files that an instance has to have, by pool."""
    if not instance.node:
        return {}
    own = {ROOT_DISK, *(f"data-{number}.qcow2" for number in range(1, len(instance.data_disks_gib) + 1))}
    if instance.cloud_init is not None:
        own.add(SEED_DISK)
    if instance.firmware is Firmware.UEFI:
        own.add("nvram.fd")
    folders, kept = {instance.pool_id: set(own)}, instance.resize
    if kept is not None:
        if kept.pool_id != instance.pool_id:
            folders[kept.pool_id] = set(own)
        folders[instance.pool_id].add(KEPT_ROOT_DISK)
    state = instance.deletion.state_before if instance.deletion is not None else instance.state
    if instance.rescue is not None:
        folders[instance.pool_id].add(RESCUE_DISK)
    if state is _S.SUSPENDED:
        folders[instance.pool_id].add(MEMORY_FILE)
    return folders


def _epoch(instance: Instance, *, epoch: int, node: str) -> Iterator[str]:
    """The right to run beside the disk may lag the record, and never be ahead of it, or be another node's."""
    if epoch > instance.run_epoch or (epoch == instance.run_epoch and node and node != instance.node):
        yield (
            f"beside the disk of {instance.uid} is epoch {epoch} of {node}, while epoch {instance.run_epoch} "
            f"on {instance.node or 'no node'} is recorded"
        )


def _larger(one: Resources, other: Resources) -> Resources:
    return Resources(
        max(one.vcpus, other.vcpus), max(one.memory_mib, other.memory_mib), max(one.disk_gib, other.disk_gib)
    )
