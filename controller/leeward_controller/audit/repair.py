"""Mends what an audit found, each by the ordinary verbs: transactions that compare, and calls that agents may refuse.

A caller's claim is the revision that the audit read. What has begun to work on an instance since then has a higher one,
so an agent that has heard of it refuses the repair.
"""

from dataclasses import replace
from typing import Any

import structlog

from leeward import keys
from leeward.agent.api import AgentApi
from leeward.agent.types import Caller, DiskFormat, GuestSpec
from leeward.errors import AgentUnavailable, FailedPrecondition, NotFound
from leeward_controller.audit.model import (
    ClearOperation,
    Contents,
    DeleteDisk,
    DeleteImageFile,
    DiskRemnant,
    DropRemnant,
    Finding,
    RaiseRunEpoch,
    RemoveGuest,
    Repair,
    SetGroup,
    SetReservation,
)
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import NodeAllocation
from leeward_controller.ports import Agents
from leeward_controller.records import (
    ALLOCATIONS,
    GROUPS,
    IMAGES,
    INSTANCES,
    NODES,
    OPERATIONS,
    Commit,
    Kind,
    Records,
    Stored,
)
from leeward_controller.view import ClusterView

log = structlog.get_logger()

_OPERATION = "operations/audit"


class Repairer:
    """Repairs findings of one audit."""

    def __init__(self, *, records: Records, view: ClusterView, agents: Agents) -> None:
        self._records = records
        self._view = view
        self._agents = agents

    async def repair(self, finding: Finding, contents: Contents) -> None:
        """Mend it. Raises LeewardError when that cannot be, or things have changed since it was found."""
        assert finding.repair is not None, "only what has a repair comes here"
        await self._repair(finding.repair, contents)
        log.info("audit.repaired", kind=finding.kind, subject=finding.subject, repair=str(finding.repair))

    async def _repair(self, repair: Repair, contents: Contents) -> None:
        match repair:
            case SetReservation():
                await self._set_reservation(repair, contents)
            case SetGroup(group):
                found = await self._records.get(GROUPS, keys.group(group.name))
                if found is None or found.revision > contents.revision:
                    raise _changed(group.name)
                await self._records.commit(Commit().replace(found, group))
            case ClearOperation(subject):
                await self._clear_operation(subject)
            case RaiseRunEpoch(name, epoch):
                stored = await self._unchanged(keys.instance(name), contents)
                new = replace(stored.value, run_epoch=max(epoch, stored.value.run_epoch))
                await self._records.commit(Commit().replace(stored, new))
            case RemoveGuest(node, uid):
                await self._check_quiet(uid, contents)
                await self._agent(node).remove_guest(_caller("remove_guest", contents), uid=uid)
            case DropRemnant():
                await self._drop_remnant(repair, contents)
            case DeleteDisk():
                await self._check_quiet(repair.uid, contents)
                spec = _spec_of_folder(repair)
                await self._agent(repair.node).delete_disk(_caller("delete_disk", contents), spec=spec)
            case DeleteImageFile(node, pool_id, digest):
                if any(stored.value.digest == digest for stored in (await self._records.list(IMAGES)).items):
                    raise _changed(f"the image with SHA-256 {digest}")
                await self._agent(node).delete_image(pool_id=pool_id, digest=digest)

    async def _set_reservation(self, repair: SetReservation, contents: Contents) -> None:
        key = keys.allocation(repair.node)
        found = await self._records.get(ALLOCATIONS, key) or Stored(key, NodeAllocation(repair.node), 0, 0)
        await self._check_quiet(repair.instance_uid, contents)
        wanted = repair.reservation
        new = found.value.without(repair.instance_uid) if wanted is None else found.value.with_reservation(wanted)
        await self._records.commit(Commit().replace(found, new))

    async def _clear_operation(self, subject: str) -> None:
        on_node = subject.startswith("nodes/")
        key = keys.node(subject.removeprefix("nodes/")) if on_node else keys.instance(subject)
        kind: Kind[Any] = NODES if on_node else INSTANCES
        stored = await self._records.get(kind, key)
        if stored is None:
            raise NotFound.named(subject)
        operation_key = keys.operation(stored.value.current_operation.removeprefix("operations/"))
        operation = await self._records.get(OPERATIONS, operation_key)
        if operation is not None and not operation.value.phase.ended:
            raise _changed(subject)
        await self._records.commit(Commit().replace(stored, replace(stored.value, current_operation="")))

    async def _drop_remnant(self, repair: DropRemnant, contents: Contents) -> None:
        stored = await self._unchanged(keys.instance(repair.instance), contents)
        agent, spec = self._agent(repair.node), stored.value.guest_spec()
        caller = _caller(repair.remnant.value.lower(), contents)
        match repair.remnant:
            case DiskRemnant.KEPT_ROOT_DISK:
                await agent.confirm_disk(caller, spec=spec)
            case DiskRemnant.RESCUE_DISK:
                await agent.drop_rescue_disk(caller, spec=spec)
            case DiskRemnant.MEMORY:
                await agent.discard_memory(caller, spec=spec)

    async def _unchanged(self, key: str, contents: Contents) -> Stored[Instance]:
        """An instance as the audit read it. Raises FailedPrecondition when it is another one by now."""
        stored = await self._records.get(INSTANCES, key)
        if stored is None or stored.revision > contents.revision:
            raise _changed(key.removeprefix(keys.INSTANCES))
        return stored

    async def _check_quiet(self, uid: str, contents: Contents) -> None:
        """Raises FailedPrecondition when the instance has changed, or come to be, since the audit read it."""
        known = contents.instances.get(uid)
        if known is not None:
            await self._unchanged(keys.instance(known.name), contents)
        elif any(s.value.uid == uid for s in (await self._records.list(INSTANCES)).items):
            raise _changed(f"the instance with uid {uid}")

    def _agent(self, node: str) -> AgentApi:
        lease = self._view.leases.get(node)
        if lease is None:
            raise AgentUnavailable(f"nodes/{node} has no heartbeat")
        return self._agents.at(node=node, address=lease.report.address)


def _caller(step: str, contents: Contents) -> Caller:
    return Caller(_OPERATION, step, contents.revision)


def _spec_of_folder(repair: DeleteDisk) -> GuestSpec:
    """A spec that names a folder: for its deletion only the uid, the pool and the epoch matter."""
    return GuestSpec(
        uid=repair.uid,
        name=repair.uid,
        vcpus=1,
        memory_mib=1,
        disk_gib=1,
        pool_id=repair.pool_id,
        image_digest="0" * 64,
        image_format=DiskFormat.QCOW2,
        run_epoch=max(1, repair.run_epoch),
    )


def _changed(what: str) -> FailedPrecondition:
    return FailedPrecondition(f"{what} has changed since the audit looked at it; audit again")
