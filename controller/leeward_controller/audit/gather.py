"""Reads what an audit looks at: the records before and after the hosts, so that what moves is not taken for drift."""

import asyncio
from dataclasses import dataclass

import structlog

from leeward.agent.types import Inventory
from leeward.errors import LeewardError
from leeward_controller.audit.model import Contents
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import Node, NodeAllocation
from leeward_controller.domain.operation import Operation
from leeward_controller.ports import Agents
from leeward_controller.records import ALLOCATIONS, GROUPS, IMAGES, INSTANCES, NODES, OPERATIONS, Records, Stored
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_INVENTORY_BOUND_S = 60.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """All records that an audit needs, at one revision."""

    revision: int
    instances: tuple[Stored[Instance], ...]
    operations: tuple[Operation, ...]
    allocations: tuple[NodeAllocation, ...]
    images: tuple[Image, ...]
    groups: tuple[Group, ...]
    nodes: tuple[Node, ...]


async def read_records(records: Records) -> Recorded:
    """Read them. Raises StoreUnavailable, Compacted."""
    instances = await records.list(INSTANCES)
    at = instances.revision
    operations = (await records.list(OPERATIONS, revision=at)).items
    return Recorded(
        revision=at,
        instances=instances.items,
        operations=tuple(stored.value for stored in operations),
        allocations=tuple(stored.value for stored in (await records.list(ALLOCATIONS, revision=at)).items),
        images=tuple(stored.value for stored in (await records.list(IMAGES, revision=at)).items),
        groups=tuple(stored.value for stored in (await records.list(GROUPS, revision=at)).items),
        nodes=tuple(stored.value for stored in (await records.list(NODES, revision=at)).items),
    )


async def take_inventories(
    view: ClusterView, agents: Agents, nodes: frozenset[str] | None = None
) -> tuple[dict[str, Inventory], dict[str, str]]:
    """What every one of these nodes holds that can be asked (None: all), and why the others could not."""
    leases = {node: lease for node, lease in sorted(view.leases.items()) if nodes is None or node in nodes}
    known = {stored.value.node for stored in view.nodes.values() if nodes is None or stored.value.node in nodes}
    unreached = dict.fromkeys(sorted(known - set(leases)), "it has no heartbeat")

    async def ask(node: str, address: str) -> Inventory | str:
        try:
            async with asyncio.timeout(_INVENTORY_BOUND_S):
                return await agents.at(node=node, address=address).take_inventory()
        except LeewardError as error:
            return error.message
        except TimeoutError:
            return f"it did not answer within {_INVENTORY_BOUND_S:g} s"

    answers = await asyncio.gather(*(ask(node, lease.report.address) for node, lease in leases.items()))
    inventories: dict[str, Inventory] = {}
    for node, answer in zip(leases, answers, strict=True):
        if isinstance(answer, str):
            log.info("audit.node_not_asked", node=node, why=answer)
            unreached[node] = answer
        else:
            inventories[node] = answer
    return inventories, unreached


async def gather(
    records: Records, view: ClusterView, agents: Agents, *, nodes: frozenset[str] | None = None
) -> Contents:
    """The contents of the cluster now, with what these nodes hold (None: all). Raises StoreUnavailable, Compacted."""
    before = await read_records(records)
    inventories, unreached = await take_inventories(view, agents, nodes)
    after = await read_records(records)
    # A file whose image was recorded, or let go, while the hosts were asked is no drift.
    images = {image.name: image for image in (*before.images, *after.images)}
    changed = {name for name, image in images.items() if image not in before.images or image not in after.images}
    return Contents(
        revision=after.revision,
        instances={stored.value.uid: stored.value for stored in after.instances},
        operations={operation.name: operation for operation in after.operations},
        allocations=after.allocations,
        images=tuple(images[name] for name in sorted(images)),
        groups=after.groups,
        nodes=after.nodes,
        inventories=inventories,
        unreached=unreached,
        busy=_busy(before, after),
        changed_images=frozenset(changed),
    )


def _busy(before: Recorded, after: Recorded) -> frozenset[str]:
    """The instances with an operation under way, and those that changed."""
    working = {
        operation.instance_uid
        for operation in (*before.operations, *after.operations)
        if operation.instance_uid and not operation.phase.ended
    }
    then = {stored.value.uid: stored.revision for stored in before.instances}
    now = {stored.value.uid: stored.revision for stored in after.instances}
    changed = {uid for uid in then.keys() | now.keys() if then.get(uid) != now.get(uid)}
    return frozenset(working | changed)
