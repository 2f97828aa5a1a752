"""Evacuate: with a fence proof for its node, give an instance a new place and start it there from the shared disk."""

from dataclasses import dataclass, replace

from leeward import keys
from leeward.agent.types import DiskFormat, GuestState
from leeward.errors import FailedPrecondition, Violation
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof
from leeward_controller.domain.operation import EvacuateArguments, OperationType
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.disks import drop_pulled_disks, moves_disks, spec_at_target
from leeward_controller.operations.images import ensure_image
from leeward_controller.operations.placing import choose_place, places_of, release_target
from leeward_controller.operations.predecessors import wait_for_predecessor
from leeward_controller.operations.readiness import AWAIT_READY, MOST_AWAITED_S, await_ready, is_awaited
from leeward_controller.operations.running import leave_target
from leeward_controller.operations.step import Advance, Definition, Step
from leeward_controller.records import FENCES, IMAGES

_LONG = 64
"""Reservations on one node beyond which they are not released one by one."""


def _arguments(context: StepContext) -> EvacuateArguments:
    arguments = context.operation.arguments
    assert isinstance(arguments, EvacuateArguments)
    return arguments


async def place(context: StepContext) -> Advance:
    """Require the proof, choose a node, reserve on it, and raise the run epoch.

    The epoch rises in the record before anything happens on a host, so no second attempt can reuse it. An instance
    that has meanwhile arrived elsewhere (a migration that was under way) needs nothing.
    """
    arguments = _arguments(context)
    if context.instance.node != arguments.fenced_node:
        return Advance(skip_rest=True)
    proof = await _require_proof(context)
    chosen = choose_place(
        context,
        named=arguments.node,
        leaving=arguments.fenced_node,
        abandons_disks=arguments.allow_rebuild,
        preferred=arguments.preferred_node,
    )
    if chosen.pool_id != context.instance.pool_id:
        _check_proves_local_death(context.instance, proof)
    epoch = context.instance.run_epoch + 1
    work = replace(
        context.operation.work,
        source_node=arguments.fenced_node,
        target_node=chosen.node,
        target_pool_id=chosen.pool_id,
        run_epoch=epoch,
    )
    return Advance(
        work=work,
        instance=lambda instance: replace(instance, run_epoch=epoch),
        reserve_on=chosen.node,
        reservation=places_of(replace(context.instance, node=chosen.node))[chosen.node],
    )


async def _require_proof(context: StepContext) -> FenceProof:
    arguments = _arguments(context)
    key = keys.fence(arguments.fenced_node, arguments.fenced_boot_id)
    found = context.view.fences.get(key) or await context.surroundings.records.get(FENCES, key)
    if found is None:
        node = f"nodes/{arguments.fenced_node}"
        why = "there is no fence proof for it, so its guests may still run"
        raise FailedPrecondition(f"{node}: {why}", violations=[Violation("FENCE_PROOF", node, why)], resource=node)
    return found.value


def _check_proves_local_death(instance: Instance, proof: FenceProof) -> None:
    """Raises FailedPrecondition for a proof that speaks of guests on shared pools only: the guard kills no others."""
    if not proof.kind.speaks_of_own_disks:
        why = f"{proof.kind} does not prove that guests on local disks have ended; have it powered off, or attest that"
        node = f"nodes/{proof.node}"
        raise FailedPrecondition(
            f"{instance.name} cannot be rebuilt elsewhere: of {node}, {why}",
            violations=[Violation("FENCE_PROOF", node, why)],
            resource=node,
        )


async def make_disk_anew(context: StepContext) -> Advance:
    """Make a new disk where the old one was lost with its node: from the latest backup, or else from its image.

    Nothing is done for one whose disk is in a pool that the target has, too.
    """
    if not moves_disks(context):
        return Advance()
    work, source = context.operation.work, await _latest_backup(context)
    await ensure_image(
        context, node=work.target_node, pool_id=work.target_pool_id, digest=source.digest, format=source.format
    )
    spec = replace(spec_at_target(context), image_digest=source.digest, image_format=source.format)
    await context.agent(work.target_node).create_disk(context.caller, spec=spec)
    return Advance(
        work=replace(work, note=f"made anew from {source.name or 'its image'}"),
        instance=lambda instance: replace(instance, image_digest=source.digest, image_format=source.format),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """What a new disk is made of; the name is that of a backup."""

    name: str
    digest: str
    format: DiskFormat


async def _latest_backup(context: StepContext) -> _Source:
    """The instance's newest backup, or the image that its disk is based on."""
    instance = context.instance
    prefix = keys.image(f"projects/{instance.project}/images/")
    found = await context.surroundings.records.list(IMAGES, prefix=prefix)
    backups = [each.value for each in found.items if each.value.properties.get("backup_instance") == instance.name]
    latest = max(backups, key=lambda image: image.create_time, default=None)
    if latest is None:
        return _Source("", instance.image_digest, instance.image_format)
    return _Source(latest.name, latest.digest, latest.format)


async def restart(context: StepContext) -> Advance:
    """Take the right to run, and have the guest as it is meant to be; the record's node is written last.

    The memory of a paused guest is lost with its node: it stands still before its first instruction.
    """
    work, wanted = context.operation.work, context.instance.wanted_guest
    agent = context.agent_to_start(work.target_node)
    spec = spec_at_target(context)
    await agent.claim_run_epoch(context.caller, spec=spec)
    await _clear_returned_source(context)
    if wanted is not GuestState.STOPPED:
        await agent.start_guest(context.caller, spec=spec, paused=wanted is GuestState.PAUSED)
    now = context.surroundings.clock.now()
    there = Advance(
        instance=lambda instance: replace(
            instance,
            node=work.target_node,
            pool_id=work.target_pool_id,
            last_boot_time=now if wanted is not GuestState.STOPPED else instance.last_boot_time,
        )
    )
    if not is_awaited(context.instance):
        there = replace(there, skip_rest=True)
    kept = places_of(replace(context.instance, node="")).get(work.source_node)
    if kept is not None:
        return replace(there, reserve_on=work.source_node, reservation=kept)
    return replace(there, release_from=_released(context))


def _released(context: StepContext) -> tuple[str, ...]:
    """The dead node, unless so much is held on it that writing all of it anew for each instance that leaves is slow.

    Then the leader's watch over the nodes drops what has left, many at a time.
    """
    source = context.operation.work.source_node
    held = context.view.allocations.get(keys.allocation(source))
    is_long = held is not None and len(held.value.reservations) > _LONG
    return () if is_long and _arguments(context).automatic and not context.instance.group else (source,)


async def _clear_returned_source(context: StepContext) -> None:
    """Should the fenced boot have come back, see that it holds nothing of the guest.

    The proof told that nothing ran there when it was made. Since the right to run has just been moved, nothing can be
    started there any more.
    """
    arguments = _arguments(context)
    node_id = arguments.fenced_node
    if node_id in context.view.leases:
        await context.agent(node_id).remove_guest(context.caller, uid=context.instance.uid)


EVACUATE = Definition(
    type=OperationType.EVACUATE,
    steps=(
        Step("wait_for_predecessor", wait_for_predecessor, deadline_s=120.0, passed_by=True),
        Step("place", place, undo=release_target, deadline_s=30.0),
        Step("make_disk_anew", make_disk_anew, undo=drop_pulled_disks, deadline_s=3600.0, passed_by=True),
        Step("restart", restart, undo=leave_target, deadline_s=60.0, commits=True),
        Step(AWAIT_READY, await_ready, deadline_s=MOST_AWAITED_S),
    ),
    attempts=3,
    begins_decided=True,
)
