"""Images and flavors."""

from leeward.agent.types import DiskFormat
from leeward.v1 import flavor_pb2, flavor_service_pb2, image_service_pb2
from leeward.v1 import image_pb2 as pb
from leeward_controller.adapters.public.convert.values import masked, timestamp
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.records import Stored
from leeward_controller.services.flavors import NewFlavor
from leeward_controller.services.images import NewImage

_FORMATS = {pb.DISK_FORMAT_RAW: DiskFormat.RAW, pb.DISK_FORMAT_QCOW2: DiskFormat.QCOW2}
_CHANGEABLE = ("properties",)


def image_to_wire(stored: Stored[Image]) -> pb.Image:
    """An image as clients see it."""
    image = stored.value
    return pb.Image(
        name=image.name,
        uid=image.uid,
        sha256=image.digest,
        format=pb.DiskFormat.Value(f"DISK_FORMAT_{image.format.name}"),
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        minimum_disk_gib=image.minimum_disk_gib,
        pools=image.pool_ids,
        properties=image.properties,
        create_time=timestamp(image.create_time),
        creator=image.created_by,
        etag=stored.etag,
    )


def new_image(spec: image_service_pb2.UploadImageSpec) -> NewImage:
    """What a client is about to upload."""
    return NewImage(
        parent=spec.parent,
        image_id=spec.image_id,
        format=_FORMATS.get(spec.format),
        sha256=spec.sha256,
        size_bytes=spec.size_bytes,
        properties=dict(spec.properties),
        pool=spec.pool,
        request_id=spec.request_id,
        validate_only=spec.validate_only,
    )


def properties_of(request: image_service_pb2.UpdateImageRequest) -> dict[str, str] | None:
    """The properties to set, None when they stay. Raises InvalidArgument."""
    given = _CHANGEABLE if request.image.properties else ()
    paths = masked(request.update_mask, _CHANGEABLE, given)
    return dict(request.image.properties) if "properties" in paths else None


def piece_to_wire(image: Image, offset: int, piece: bytes, *, first: bool) -> image_service_pb2.DownloadImageResponse:
    """One message of a download."""
    message = image_service_pb2.DownloadImageResponse(chunk=piece, offset=offset)
    if first:
        message.size_bytes = image.size_bytes
        message.sha256 = image.digest
    return message


def flavor_to_wire(stored: Stored[Flavor]) -> flavor_pb2.Flavor:
    """A flavor as clients see it."""
    flavor = stored.value
    return flavor_pb2.Flavor(
        name=flavor.name,
        uid=flavor.uid,
        vcpus=flavor.vcpus,
        memory_mib=flavor.memory_mib,
        disk_gib=flavor.disk_gib,
        create_time=timestamp(flavor.create_time),
        etag=stored.etag,
    )


def new_flavor(request: flavor_service_pb2.CreateFlavorRequest) -> NewFlavor:
    """A flavor to make."""
    return NewFlavor(
        flavor_id=request.flavor_id,
        vcpus=request.flavor.vcpus,
        memory_mib=request.flavor.memory_mib,
        disk_gib=request.flavor.disk_gib,
        request_id=request.request_id,
        validate_only=request.validate_only,
    )
