"""Images: taken in, handed out, renamed in nothing, removed when nothing needs them."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from leeward import keys, names
from leeward.agent.types import SHA256_HEX_LENGTH, DiskFormat
from leeward.clock import Clock, Ids
from leeward.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, ResourceExhausted, Violation
from leeward_controller.domain.catalog import Image
from leeward_controller.domain.instance import Instance
from leeward_controller.operations.admission import Gatekeeper
from leeward_controller.records import IMAGES, INSTANCES, Commit, Records, Stored
from leeward_controller.services.checks import Checks, check_etag
from leeward_controller.services.filters import Fields, parse_filter
from leeward_controller.services.image_files import ImageFiles, Place
from leeward_controller.services.image_properties import check_properties
from leeward_controller.services.instances import Target, project_prefix
from leeward_controller.services.paging import Listing, PageRequest, list_page

MAX_IMAGE_BYTES = 16 * 2**40
_TOLD_INSTANCES = 16
_ATTEMPTS = 5
_SHA256 = re.compile(rf"[0-9a-f]{{{SHA256_HEX_LENGTH}}}\Z")

_FIELDS: Fields[Image] = {
    "sha256": lambda image: image.digest,
    "format": lambda image: image.format.name,
}


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to take in, as it was asked for. `format` is None when it was not told."""

    parent: str
    image_id: str
    format: DiskFormat | None
    sha256: str
    size_bytes: int
    properties: Mapping[str, str] = field(default_factory=dict)
    pool: str = ""
    request_id: str = ""
    validate_only: bool = False

    def check(self) -> str:
        """The image's name. Raises InvalidArgument with every wrong field."""
        checks = Checks()
        project = checks.parsed(lambda: names.project(self.parent, field="spec.parent"), "")
        image_id = checks.parsed(lambda: names.check_id(self.image_id, field="spec.image_id"), "")
        checks.that(self.format is not None, "spec.format", "is missing; allowed: RAW, QCOW2")
        digits = f"{SHA256_HEX_LENGTH} hexadecimal digits"
        checks.that(bool(_SHA256.match(self.sha256.lower())), "spec.sha256", f"{self.sha256!r} is not {digits}")
        checks.between(self.size_bytes, 1, MAX_IMAGE_BYTES, "spec.size_bytes", " bytes")
        check_properties(checks, self.properties, "spec.properties")
        checks.request_id(self.request_id, "spec.request_id")
        checks.done()
        return names.image_name(project, image_id)


class ImageService:
    """The images."""

    def __init__(self, *, records: Records, files: ImageFiles, gatekeeper: Gatekeeper, clock: Clock, ids: Ids) -> None:
        self._records = records
        self._files = files
        self._gatekeeper = gatekeeper
        self._clock = clock
        self._ids = ids

    async def upload(self, new: NewImage, chunks: AsyncIterator[bytes], *, principal: str) -> Stored[Image]:
        """Take in an image; it is there whole or not at all. The same request again answers what it made.

        Raises InvalidArgument, ImageRefused, AlreadyExists and ResourceExhausted (quota; both before any bytes are
        read), FailedPrecondition (no pool), StorageError, AgentUnavailable.
        """
        name = new.check()
        if (there := await self._there_already(name, new)) is not None:
            return there
        await self._gatekeeper.admit_image(Commit(), name, new.size_bytes)
        place = self._files.place_for(new.pool)
        digest = new.sha256.lower()
        assert new.format is not None
        if new.validate_only:
            return Stored(keys.image(name), self._record(new, name, place, principal, 0), 0, 0)
        with self._files.upload(digest):
            file = await self._files.store(
                place, digest=digest, format=new.format, size_bytes=new.size_bytes, chunks=chunks
            )
            image = self._record(new, name, place, principal, file.virtual_size_bytes)
            return await self._publish(image, new, place)

    async def get(self, name: str) -> Stored[Image]:
        """One image, as it is now. Raises InvalidArgument, NotFound."""
        names.project_image(name)
        return await self._read(name)

    async def list(self, parent: str, page: PageRequest) -> Listing[Image]:
        """One page of a project's images, by name. Raises InvalidArgument."""
        checks = Checks()
        prefix = checks.parsed(lambda: project_prefix(keys.IMAGES, parent, "images"), "")
        page.check(checks)
        keep: Callable[[Image], bool] = checks.parsed(
            lambda: parse_filter(page.filter, _FIELDS, mapping=lambda i: i.properties, prefix="properties"),
            lambda _: True,
        )
        checks.done()
        return await list_page(self._records, IMAGES, page, prefix=prefix, keep=keep)

    async def update(
        self, target: Target, *, properties: Mapping[str, str] | None, request_id: str = ""
    ) -> Stored[Image]:
        """Change the properties, when they are given. Raises InvalidArgument, NotFound, Conflict (etag)."""
        checks = Checks()
        checks.parsed(lambda: names.project_image(target.name, field="image.name"), ("", ""))
        check_properties(checks, properties or {}, "image.properties")
        checks.request_id(request_id)
        checks.done()
        attempts = 1 if target.etag else _ATTEMPTS
        while True:
            attempts -= 1
            stored = await self._read(target.name)
            check_etag(stored, target.etag, name=target.name)
            new = stored.value if properties is None else replace(stored.value, properties=dict(properties))
            if new == stored.value or target.validate_only:
                return stored
            try:
                revision = await self._records.commit(Commit().replace(stored, new))
                return Stored(stored.key, new, revision, stored.create_revision)
            except Conflict:
                if attempts <= 0:
                    raise

    async def delete(self, target: Target) -> None:
        """Remove an image, and its file when no other image has the same.

        Raises InvalidArgument, NotFound, Conflict (etag), FailedPrecondition (instances use it).
        """
        names.project_image(target.name)
        stored = await self._read(target.name)
        check_etag(stored, target.etag, name=target.name)
        await self._check_unused(stored.value)
        if target.validate_only:
            return
        # The record goes first: an image that is offered must have its file.
        await self._records.commit(Commit().remove(stored))
        await self._drop_file(stored.value.pool_ids, stored.value.digest, uploads=0)

    async def download(self, name: str, *, offset: int) -> AsyncGenerator[tuple[Image, int, bytes], None]:
        """The image's bytes from `offset`, each piece with where it stands; at least one piece, perhaps empty.

        Raises InvalidArgument, NotFound, Unavailable.
        """
        names.project_image(name)
        image = (await self._read(name)).value
        checks = Checks()
        checks.between(offset, 0, image.size_bytes, "offset")
        checks.done()
        yield image, offset, b""
        if offset == image.size_bytes:
            return
        async with aclosing(self._files.read(image.pool_ids, digest=image.digest, offset=offset)) as pieces:
            async for piece in pieces:
                yield image, offset, piece
                offset += len(piece)

    def _record(self, new: NewImage, name: str, place: Place, principal: str, virtual_size_bytes: int) -> Image:
        assert new.format is not None
        return Image(
            name=name,
            uid=self._ids.new(),
            digest=new.sha256.lower(),
            format=new.format,
            size_bytes=new.size_bytes,
            virtual_size_bytes=virtual_size_bytes,
            pool_ids=(place.pool_id,),
            create_time=self._clock.now(),
            created_by=principal,
            request_id=new.request_id,
            properties=dict(new.properties),
        )

    async def _publish(self, image: Image, new: NewImage, place: Place) -> Stored[Image]:
        """Record an image whose file is stored; what was stored in vain goes again."""
        attempts = _ATTEMPTS
        while True:
            attempts -= 1
            try:
                commit = Commit().create(keys.image(image.name), image)
                await self._gatekeeper.admit_image(commit, image.name, image.size_bytes)
                revision = await self._records.commit(commit)
                return Stored(keys.image(image.name), image, revision, revision)
            except Conflict:
                if (there := await self._lost_race(image.name, new, place)) is not None:
                    return there
                if attempts <= 0:
                    raise
            except ResourceExhausted:
                await self._drop_file([place.pool_id], image.digest, uploads=1)
                raise

    async def _there_already(self, name: str, new: NewImage) -> Stored[Image] | None:
        """The image of that name when this very request made it. Raises AlreadyExists when another did."""
        there = await self._records.get(IMAGES, keys.image(name))
        if there is None:
            return None
        image = there.value
        same = (image.digest, image.format, image.size_bytes) == (new.sha256.lower(), new.format, new.size_bytes)
        if new.request_id and image.request_id == new.request_id and same:
            return there
        raise AlreadyExists.named(name)

    async def _lost_race(self, name: str, new: NewImage, place: Place) -> Stored[Image] | None:
        """As `_there_already`, for one whose file is stored: when it was in vain the file goes again."""
        try:
            return await self._there_already(name, new)
        except AlreadyExists:
            await self._drop_file([place.pool_id], new.sha256.lower(), uploads=1)
            raise

    async def _drop_file(self, pool_ids: Sequence[str], digest: str, *, uploads: int) -> None:
        """Remove a file that no image has, nor more than `uploads` under way are about to have."""
        if self._files.uploads(digest) <= uploads and not await self._is_referenced(digest):
            await self._files.delete(pool_ids, digest=digest)

    async def _check_unused(self, image: Image) -> None:
        everything = await self._records.list(INSTANCES)
        users = [stored.value.name for stored in everything.items if image.name in _images_of(stored.value)]
        if users:
            told = ", ".join(users[:_TOLD_INSTANCES])
            raise FailedPrecondition(
                f"{image.name} is used by {len(users)} instances: {told}",
                reason="IMAGE_IN_USE",
                violations=[Violation("IN_USE", user, f"uses {image.name}") for user in users[:_TOLD_INSTANCES]],
                metadata={"instances": str(len(users))},
                resource=image.name,
            )

    async def _is_referenced(self, digest: str) -> bool:
        images, instances = await self._records.list(IMAGES), await self._records.list(INSTANCES)
        return any(s.value.digest == digest for s in images.items) or any(
            digest in _digests_of(s.value) for s in instances.items
        )

    async def _read(self, name: str) -> Stored[Image]:
        stored = await self._records.get(IMAGES, keys.image(name))
        if stored is None:
            raise NotFound.named(name)
        return stored


def _images_of(instance: Instance) -> set[str]:
    """The names of the images that an instance needs."""
    return {
        instance.image,
        *([instance.rescue.image] if instance.rescue else ()),
        *([instance.shelf.image] if instance.shelf else ()),
    }


def _digests_of(instance: Instance) -> set[str]:
    """The files that an instance needs."""
    return {
        instance.image_digest,
        *([instance.rescue.digest] if instance.rescue else ()),
        *([instance.shelf.digest] if instance.shelf else ()),
    }
