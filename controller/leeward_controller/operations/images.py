"""Having an image where a disk is to be made of it: agents fetch it from one another."""

from dataclasses import dataclass

import structlog

from leeward import keys
from leeward.agent.types import DiskFormat, PoolSource
from leeward.errors import AgentIndefinite, AgentUnavailable, LeewardError, NotFound, StorageError
from leeward_controller.domain.catalog import Image
from leeward_controller.operations.context import StepContext
from leeward_controller.records import IMAGES

log = structlog.get_logger()

LONGEST_FETCH_S = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class _Holder:
    """A pool that has the image, and a node through which it is read."""

    pool_id: str
    node: str


async def ensure_image(context: StepContext, *, node: str, pool_id: str, digest: str, format: DiskFormat) -> None:
    """Have the image in a pool of `node`; fetched from another node's pool when it is not recorded to be there.

    The pools it is sought in are those of the images' records, then those of other instances' disks made of it.
    Raises NotFound (it is in no pool), AgentUnavailable (no node that has it is alive), StorageError.
    """
    images = await _images(context, digest)
    if any(pool_id in image.pool_ids for image in images):
        return
    pools = _pools(context, images, digest, but=pool_id)
    if not pools:
        raise NotFound(f"the image of SHA-256 {digest} lies in no pool but {pool_id}, if there")
    holders = _holders(context, pools)
    if not holders:
        raise AgentUnavailable(
            f"no node with a heartbeat has a pool with the image of SHA-256 {digest}: {', '.join(pools)}"
        )
    lost: LeewardError | None = None
    for holder in holders:
        try:
            await _fetch(context, holder, images, node=node, pool_id=pool_id, digest=digest, format=format)
            return
        except (AgentUnavailable, AgentIndefinite, StorageError, NotFound) as error:
            log.info("image.fetch_elsewhere", source=holder.node, pool=holder.pool_id, why=error.message)
            lost = error
    assert lost is not None
    raise lost


async def _fetch(
    context: StepContext,
    holder: _Holder,
    images: list[Image],
    *,
    node: str,
    pool_id: str,
    digest: str,
    format: DiskFormat,
) -> None:
    lease = context.view.leases.get(holder.node)
    if lease is None:
        raise AgentUnavailable(f"nodes/{holder.node} has no heartbeat")
    size_bytes = images[0].size_bytes if images else await _size_at(context, holder, digest)
    source = PoolSource(holder.node, lease.report.address, holder.pool_id)
    agent = context.agent(node)
    await agent.fetch_image(pool_id=pool_id, digest=digest, format=format, size_bytes=size_bytes, source=source)


async def _images(context: StepContext, digest: str) -> list[Image]:
    """The records of images with this digest; that of the instance's own image is looked at first, for it is cheap."""
    records, instance = context.surroundings.records, context.instance
    own = await records.get(IMAGES, keys.image(instance.image)) if instance.image_digest == digest else None
    if own is not None and own.value.digest == digest:
        return [own.value]
    return [each.value for each in (await records.list(IMAGES)).items if each.value.digest == digest]


def _pools(context: StepContext, images: list[Image], digest: str, *, but: str) -> list[str]:
    recorded = dict.fromkeys(each for image in images for each in image.pool_ids)
    used = sorted(
        stored.value.pool_id
        for stored in context.view.instances.values()
        if stored.value.node and stored.value.image_digest == digest
    )
    return [pool_id for pool_id in dict.fromkeys([*recorded, *used]) if pool_id not in ("", but)]


def _holders(context: StepContext, pools: list[str]) -> list[_Holder]:
    """All ways to read the image: the pools in their order, through each node that has one."""
    leases = sorted(context.view.leases.items())
    return [
        _Holder(pool_id, node)
        for pool_id in pools
        for node, lease in leases
        if any(pool.pool_id == pool_id and pool.healthy for pool in lease.report.pools)
    ]


async def _size_at(context: StepContext, holder: _Holder, digest: str) -> int:
    """The size of an image that no record names any more, from the pool itself. Raises NotFound."""
    inventory = await context.agent(holder.node).take_inventory()
    for pool in inventory.pools:
        for image in pool.images:
            if pool.pool_id == holder.pool_id and image.digest == digest:
                return image.size_bytes
    raise NotFound(f"pool {holder.pool_id} of nodes/{holder.node} has no image of SHA-256 {digest}")
