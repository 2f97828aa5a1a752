"""`leeward.v1.ImageService` and `leeward.v1.FlavorService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from google.protobuf.empty_pb2 import Empty

from leeward.errors import InvalidArgument
from leeward.rpc.handlers import Context
from leeward.rpc.server_auth import current_principal
from leeward.v1 import flavor_pb2, image_pb2
from leeward.v1 import flavor_service_pb2 as flavor_pb
from leeward.v1 import image_service_pb2 as pb
from leeward_controller.adapters.public.convert import catalog as convert
from leeward_controller.services.flavors import FlavorService
from leeward_controller.services.images import ImageService
from leeward_controller.services.instances import Target
from leeward_controller.services.paging import PageRequest


class ImageServicer:
    """Images over gRPC."""

    def __init__(self, images: ImageService) -> None:
        self._images = images

    async def UploadImage(
        self, request_iterator: AsyncIterator[pb.UploadImageRequest], context: Context
    ) -> image_pb2.Image:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("content") != "spec":
            raise InvalidArgument.field("spec", "must be in the first message")
        chunks = _chunks(request_iterator)
        stored = await self._images.upload(convert.new_image(first.spec), chunks, principal=str(current_principal()))
        return convert.image_to_wire(stored)

    async def DownloadImage(
        self, request: pb.DownloadImageRequest, context: Context
    ) -> AsyncGenerator[pb.DownloadImageResponse, None]:
        first = True
        async with aclosing(self._images.download(request.name, offset=request.offset)) as pieces:
            async for image, offset, piece in pieces:
                yield convert.piece_to_wire(image, offset, piece, first=first)
                first = False

    async def GetImage(self, request: pb.GetImageRequest, context: Context) -> image_pb2.Image:
        return convert.image_to_wire(await self._images.get(request.name))

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        page = PageRequest(request.page_size, request.page_token, request.filter)
        listing = await self._images.list(request.parent, page)
        return pb.ListImagesResponse(
            images=[convert.image_to_wire(item) for item in listing.items],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: Context) -> image_pb2.Image:
        target = Target(request.image.name, request.image.etag, request.validate_only)
        properties = convert.properties_of(request)
        stored = await self._images.update(target, properties=properties, request_id=request.request_id)
        return convert.image_to_wire(stored)

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        await self._images.delete(Target(request.name, request.etag, request.validate_only))
        return Empty()


class FlavorServicer:
    """Flavors over gRPC."""

    def __init__(self, flavors: FlavorService) -> None:
        self._flavors = flavors

    async def CreateFlavor(self, request: flavor_pb.CreateFlavorRequest, context: Context) -> flavor_pb2.Flavor:
        return convert.flavor_to_wire(await self._flavors.create(convert.new_flavor(request)))

    async def GetFlavor(self, request: flavor_pb.GetFlavorRequest, context: Context) -> flavor_pb2.Flavor:
        return convert.flavor_to_wire(await self._flavors.get(request.name))

    async def ListFlavors(
        self, request: flavor_pb.ListFlavorsRequest, context: Context
    ) -> flavor_pb.ListFlavorsResponse:
        listing = await self._flavors.list(PageRequest(request.page_size, request.page_token))
        return flavor_pb.ListFlavorsResponse(
            flavors=[convert.flavor_to_wire(item) for item in listing.items],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def DeleteFlavor(self, request: flavor_pb.DeleteFlavorRequest, context: Context) -> Empty:
        await self._flavors.delete(request.name, etag=request.etag, validate_only=request.validate_only)
        return Empty()


async def _chunks(requests: AsyncIterator[pb.UploadImageRequest]) -> AsyncGenerator[bytes, None]:
    """The bytes of an upload. Raises InvalidArgument for anything else between them."""
    async for request in requests:
        if request.WhichOneof("content") != "chunk":
            raise InvalidArgument.field("chunk", "every message after the first must be a chunk")
        yield request.chunk
