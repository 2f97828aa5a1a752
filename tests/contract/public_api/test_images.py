"""Images go in whole or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.contract.public_api.calls import DEBIAN, VM, E, launched, refused
from tests.support.public import IMAGE, SHA256, WAIT_S, Face, PublicLab, image_spec

from leeward.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageRefused,
    InvalidArgument,
    LeewardError,
)
from leeward.rpc.client_streams import stream_errors
from leeward.v1 import image_pb2
from leeward.v1 import image_service_pb2 as image_pb
from leeward.v1 import instance_service_pb2 as pb


async def _upload_refused(kind: type[E], face: Face, *messages: image_pb.UploadImageRequest) -> E:
    async def all_messages() -> AsyncIterator[image_pb.UploadImageRequest]:
        for message in messages:
            yield message

    call = face.images.UploadImage(all_messages())
    with pytest.raises(kind) as caught:
        async with asyncio.timeout(WAIT_S), stream_errors(call, "the controller"):
            await call
    assert type(caught.value) is kind
    return caught.value


def _spec(**changes: Any) -> image_pb.UploadImageRequest:
    return image_pb.UploadImageRequest(spec=image_spec(**changes))


def _chunk(data: bytes) -> image_pb.UploadImageRequest:
    return image_pb.UploadImageRequest(chunk=data)


async def test_uploads_that_are_refused_leave_nothing(lab: PublicLab, face: Face) -> None:
    qcow2 = b"QFI\xfb" + bytes(len(IMAGE) - 4)
    cases: list[tuple[type[LeewardError], list[image_pb.UploadImageRequest], set[str], str]] = [
        (InvalidArgument, [], {"spec"}, "must be in the first message"),
        (InvalidArgument, [_chunk(IMAGE)], {"spec"}, "must be in the first message"),
        (
            InvalidArgument,
            [_spec(parent="p", image_id="", format=0, sha256="12", size_bytes=0, properties={"": ""}, request_id="é")],
            {
                "spec.parent",
                "spec.image_id",
                "spec.format",
                "spec.sha256",
                "spec.size_bytes",
                "spec.properties[]",
                "spec.request_id",
            },
            "allowed",
        ),
        (InvalidArgument, [_spec(), _chunk(IMAGE[:-1])], {"chunk"}, f"after {len(IMAGE) - 1} of the {len(IMAGE)}"),
        (InvalidArgument, [_spec(), _chunk(IMAGE), _chunk(b"x")], {"chunk"}, f"more than the {len(IMAGE)}"),
        (InvalidArgument, [_spec(size_bytes=2**22), _chunk(bytes(2**21 + 1))], {"chunk"}, f"at most {2**21}"),
        (InvalidArgument, [_spec(), _chunk(IMAGE[:9]), _spec()], {"chunk"}, "must be a chunk"),
        (ImageRefused, [_spec(sha256="ab" * 32), _chunk(IMAGE)], set(), SHA256),
        (ImageRefused, [_spec(sha256=hashlib.sha256(qcow2).hexdigest()), _chunk(qcow2)], set(), "qcow2"),
        (FailedPrecondition, [_spec(pool="elsewhere"), _chunk(IMAGE)], set(), "elsewhere"),
    ]
    for kind, messages, fields, words in cases:
        error = await _upload_refused(kind, face, *messages)
        assert {violation.field for violation in error.fields} == fields, words
        assert words in error.message
    listed = await face.images.ListImages(image_pb.ListImagesRequest(parent="projects/-"))
    assert list(listed.images) == []
    assert lab.cluster.pool.images == {}


async def test_an_image_goes_in_whole_and_comes_out_from_any_offset(face: Face) -> None:
    spec = image_spec(properties={"os": "debian"}, request_id="up")
    made = await face.upload(spec)
    assert (made.sha256, made.size_bytes, made.minimum_disk_gib) == (SHA256, len(IMAGE), 1)
    assert (await face.upload(spec)) == made, "the same request again"
    error = await _upload_refused(AlreadyExists, face, _spec())
    assert error.resource == DEBIAN
    for offset in (0, 1_234_567, len(IMAGE)):
        received = b""
        async for message in face.images.DownloadImage(image_pb.DownloadImageRequest(name=DEBIAN, offset=offset)):
            assert message.offset == offset + len(received)
            received += message.chunk
        assert received == IMAGE[offset:]
    beyond = image_pb.DownloadImageRequest(name=DEBIAN, offset=len(IMAGE) + 1)
    wrong = await refused(InvalidArgument, face.images.DownloadImage(beyond).read())
    assert [violation.field for violation in wrong.fields] == ["offset"]
    update = image_pb.UpdateImageRequest(image=image_pb2.Image(name=DEBIAN, properties={"os": "bookworm"}))
    assert dict((await face.images.UpdateImage(update)).properties) == {"os": "bookworm"}


async def test_an_image_in_use_stays_and_its_file_stays_while_another_has_it(lab: PublicLab, stocked: Face) -> None:
    await launched(stocked)
    delete = image_pb.DeleteImageRequest(name=DEBIAN)
    error = await refused(FailedPrecondition, stocked.images.DeleteImage(delete))
    assert error.specific_reason == "IMAGE_IN_USE"
    assert [violation.subject for violation in error.violations] == [VM]
    await stocked.upload(image_spec("twin"))
    await stocked.ended(await stocked.instances.DeleteInstance(pb.DeleteInstanceRequest(name=VM)))
    await stocked.images.DeleteImage(delete)
    assert set(lab.cluster.pool.images) == {SHA256}
    await stocked.images.DeleteImage(image_pb.DeleteImageRequest(name="projects/p/images/twin"))
    assert lab.cluster.pool.images == {}
