"""Deletes image files that nobody needs: of no image, or copies in pools that are not an image's own.

A file is left alone while a disk is based on it, which the agent sees to, and for an hour after it came: whatever made
it may be about to say what it is for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from leeward.agent.types import HeldImage, Inventory
from leeward.errors import LeewardError
from leeward_controller.audit.gather import take_inventories
from leeward_controller.audit.images import digests_in_work, digests_of, needed_digests
from leeward_controller.audit.model import OLD_ENOUGH_S
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation
from leeward_controller.operations.context import Surroundings
from leeward_controller.records import IMAGES, INSTANCES, OPERATIONS

log = structlog.get_logger()

ROUND_S = 600.0


@dataclass(frozen=True, slots=True)
class Unneeded:
    """An image file that can go, and a node through which it is deleted."""

    node: str
    pool_id: str
    digest: str
    reason: str


def unneeded_files(
    inventories: Mapping[str, Inventory],
    images: Iterable[Image],
    instances: Iterable[Instance],
    operations: Iterable[Operation],
) -> list[Unneeded]:
    """What can go, each file once."""
    images, instances, operations = tuple(images), tuple(instances), tuple(operations)
    needed = needed_digests(images, instances, operations)
    homes = {(pool_id, image.digest) for image in images for pool_id in image.pool_ids}
    in_work = digests_in_work(operations)
    for instance in instances:
        if instance.current_operation:
            # What is being launched or moved takes its image before its disk is based on it.
            in_work |= digests_of(instance)
    found: dict[tuple[str, str], Unneeded] = {}
    for node, inventory in sorted(inventories.items()):
        for pool in inventory.pools:
            for held in pool.images:
                why = _why(held, homes, needed, in_work, pool_id=pool.pool_id)
                if why:
                    found.setdefault((pool.pool_id, held.digest), Unneeded(node, pool.pool_id, held.digest, why))
    return list(found.values())


def _why(
    held: HeldImage, homes: set[tuple[str, str]], needed: frozenset[str], in_work: set[str], *, pool_id: str
) -> str:
    """Why a file can go; empty when it stays."""
    if held.users or held.age_s < OLD_ENOUGH_S:
        return ""
    if held.digest not in needed:
        return "no image has it"
    has_home = any(digest == held.digest for _, digest in homes)
    if has_home and (pool_id, held.digest) not in homes and held.digest not in in_work:
        return "a copy that no disk is based on"
    return ""


class ImageSweep:
    """Sweeps all pools every ten minutes, for the first time as long after the leader began."""

    name = "image sweep"

    def __init__(self, *, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._due_s = surroundings.clock.monotonic_s() + ROUND_S

    def concerns(self, key: str) -> bool:
        return False

    async def work(self) -> float:
        clock = self._surroundings.clock
        if clock.monotonic_s() >= self._due_s:
            self._due_s = clock.monotonic_s() + ROUND_S
            await self._sweep()
        return self._due_s - clock.monotonic_s()

    async def _sweep(self) -> None:
        records, view, agents = self._surroundings.records, self._surroundings.view, self._surroundings.agents
        inventories, _ = await take_inventories(view, agents)
        # Records are read after the pools: what has come to be named since is seen.
        images = [stored.value for stored in (await records.list(IMAGES)).items]
        instances = [stored.value for stored in (await records.list(INSTANCES)).items]
        operations = [stored.value for stored in (await records.list(OPERATIONS)).items]
        for file in unneeded_files(inventories, images, instances, operations):
            lease = view.leases.get(file.node)
            if lease is None:
                continue
            agent = agents.at(node=file.node, address=lease.report.address)
            try:
                await agent.delete_image(pool_id=file.pool_id, digest=file.digest)
                log.info("image.swept", pool=file.pool_id, digest=file.digest, why=file.reason)
            except LeewardError as error:
                log.info("image.not_swept", pool=file.pool_id, digest=file.digest, why=error.message)
