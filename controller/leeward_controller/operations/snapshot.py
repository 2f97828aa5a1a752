"""Snapshot: make an image of an instance's root disk as of one moment; a guest that runs is not stopped."""

from dataclasses import replace

from leeward.agent.types import GuestState
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import OperationType, SnapshotArguments
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance, Definition, Step

LONGEST_COPY_S = 4 * 3600.0


async def copy(context: StepContext) -> Advance:
    """Make the image file. It has no name yet: a file that no record names is swept away after a while."""
    agent = context.agent(context.instance.node)
    snapshot = await agent.snapshot_disk(context.caller, spec=context.instance.guest_spec())
    note = _how_consistent(context.instance, quiesced=snapshot.quiesced)
    return Advance(work=replace(context.operation.work, snapshot=snapshot, note=note))


def _how_consistent(instance: Instance, *, quiesced: bool) -> str:
    if quiesced:
        return "quiesced by the guest agent"
    if instance.wanted_guest is GuestState.STOPPED:
        return "taken while nothing ran"
    return "consistent as after a power cut: no guest agent has frozen its file systems"


async def publish(context: StepContext) -> Advance:
    """Record the image."""
    arguments = context.operation.arguments
    assert isinstance(arguments, SnapshotArguments)
    return Advance(put_image=image_of(context, name=arguments.image, properties=arguments.properties))


def image_of(context: StepContext, *, name: str, properties: dict[str, str]) -> Image:
    """The record of the image that was made; machine and firmware go on to what is launched from it."""
    operation, instance, snapshot = context.operation, context.instance, context.operation.work.snapshot
    assert snapshot is not None
    machine = {"machine": instance.machine.value, "firmware": instance.firmware.value}
    return Image(
        name=name,
        uid=operation.id,
        digest=snapshot.image.digest,
        format=snapshot.image.format,
        size_bytes=snapshot.image.size_bytes,
        virtual_size_bytes=snapshot.image.virtual_size_bytes,
        pool_ids=(instance.pool_id,),
        create_time=context.surroundings.clock.now(),
        created_by=operation.requested_by,
        properties={**machine, **properties, "source_instance": instance.name},
    )


SNAPSHOT = Definition(
    type=OperationType.SNAPSHOT,
    steps=(Step("copy", copy, deadline_s=LONGEST_COPY_S), Step("publish", publish)),
)
