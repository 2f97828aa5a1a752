"""Moving image files: whole or not at all, and again where a connection is lost."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

from leeward.client.failover import FailoverChannel
from leeward.client.rounds import Unreachable
from leeward.client.watching import go_on
from leeward.errors import DataLoss, FailedPrecondition, InvalidArgument, LeewardError, NotFound
from leeward.rpc.client_streams import stream_errors
from leeward.v1 import image_service_pb2 as service
from leeward.v1.image_pb2 import Image

if TYPE_CHECKING:
    import grpc

    # Exists for type checkers only.
    from leeward.v1.image_service_pb2_grpc import ImageServiceAsyncStub

UploadCall: TypeAlias = "grpc.aio.StreamUnaryCall[service.UploadImageRequest, Image]"

_CHUNK_BYTES = 512 * 1024
_SLOWEST_BYTES_S = 1024 * 1024
_SETTLE_S = 120.0


class Progress(Protocol):
    """Told how far a file is."""

    def __call__(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """`stage` is checking, uploading or downloading."""
        ...


async def digest_file(path: Path, progress: Progress | None) -> tuple[str, int]:
    """SHA-256 and size of a file. Raises NotFound or FailedPrecondition."""
    digest = hashlib.sha256()
    file = await _opened(path)
    try:
        total = os.fstat(file.fileno()).st_size
        done = 0
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            await asyncio.to_thread(digest.update, chunk)
            done += len(chunk)
            if progress:
                progress("checking", done, total)
    finally:
        file.close()
    return digest.hexdigest(), done


async def upload(
    channel: FailoverChannel,
    stub: "ImageServiceAsyncStub",
    spec: service.UploadImageSpec,
    path: Path,
    progress: Progress | None,
) -> Image:
    """Send a file as `spec` says. When the connection breaks, look whether it arrived, and else send it again."""
    name = f"{spec.parent}/images/{spec.image_id}"
    rounds = channel.rounds(channel.limits.stream_patience_s)
    while True:
        address = channel.endpoints.current
        try:
            return await _upload_once(address, stub, spec, path, progress)
        except LeewardError as error:
            await go_on(address, error, endpoints=channel.endpoints, rounds=rounds)
            arrived = await _find(stub, name)
            if arrived is not None and arrived.sha256 == spec.sha256:
                return arrived


async def download(
    channel: FailoverChannel, stub: "ImageServiceAsyncStub", name: str, path: Path, progress: Progress | None
) -> None:
    """Write an image to `path`, which appears whole and with the right digest or not at all. Replaces a file there.

    Raises DataLoss when the bytes are not those of the digest, FailedPrecondition when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.part-{channel.ids.new()}")
    try:
        file = await asyncio.to_thread(partial.open, "xb")
    except OSError as error:
        raise FailedPrecondition(f"cannot write {partial}: {error.strerror}") from error
    try:
        with file:
            await _fill(channel, stub, name, file, progress)
        await asyncio.to_thread(partial.replace, path)
    except OSError as error:
        raise FailedPrecondition(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


async def _upload_once(
    address: str, stub: "ImageServiceAsyncStub", spec: service.UploadImageSpec, path: Path, progress: Progress | None
) -> Image:
    call = stub.UploadImage(timeout=_SETTLE_S + spec.size_bytes / _SLOWEST_BYTES_S)
    try:
        async with stream_errors(call, address, unreachable=Unreachable):
            await call.write(service.UploadImageRequest(spec=spec))
            if not spec.validate_only:
                await _send(call, path, spec.size_bytes, progress)
            await call.done_writing()
            return await call
    finally:
        # Where the file could not be read, the server must not wait for the rest; else this does nothing.
        call.cancel()


async def _send(call: UploadCall, path: Path, total: int, progress: Progress | None) -> None:
    file = await _opened(path)
    try:
        done = 0
        while not call.done() and (chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES)):
            try:
                await call.write(service.UploadImageRequest(chunk=chunk))
            except asyncio.InvalidStateError:
                return  # The server has ended the call, perhaps since it has these bytes already; the call tells.
            done += len(chunk)
            if progress:
                progress("uploading", done, total)
    finally:
        file.close()


async def _find(stub: "ImageServiceAsyncStub", name: str) -> Image | None:
    try:
        return await stub.GetImage(service.GetImageRequest(name=name))
    except NotFound:
        return None


async def _fill(
    channel: FailoverChannel, stub: "ImageServiceAsyncStub", name: str, file: BinaryIO, progress: Progress | None
) -> None:
    digest, done, total, expected = hashlib.sha256(), 0, 0, ""
    async with aclosing(_chunks(channel, stub, name, lambda: done)) as responses:
        async for response in responses:
            total, expected = response.size_bytes or total, response.sha256 or expected
            if response.chunk and response.offset != done:
                raise DataLoss(f"{name}: the bytes from {done} on are missing, those from {response.offset} came")
            await asyncio.to_thread(file.write, response.chunk)
            await asyncio.to_thread(digest.update, response.chunk)
            done += len(response.chunk)
            if progress:
                progress("downloading", done, total)
    if done != total or digest.hexdigest() != expected:
        raise DataLoss(f"{name} arrived damaged: {done} of {total} bytes with SHA-256 {digest.hexdigest()}")


async def _chunks(
    channel: FailoverChannel, stub: "ImageServiceAsyncStub", name: str, offset: Callable[[], int]
) -> AsyncGenerator[service.DownloadImageResponse, None]:
    """The responses of a download, which is taken up again at `offset()` when its connection is lost."""
    rounds = channel.rounds(channel.limits.stream_patience_s)
    while True:
        address = channel.endpoints.current
        try:
            async for response in stub.DownloadImage(service.DownloadImageRequest(name=name, offset=offset())):
                rounds.reset()
                yield response
            return
        except LeewardError as error:
            await go_on(address, error, endpoints=channel.endpoints, rounds=rounds)


async def _opened(path: Path) -> BinaryIO:
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError as error:
        raise NotFound.named(str(path)) from error
    except IsADirectoryError as error:
        raise InvalidArgument.field("file", f"{path} is a directory") from error
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {error.strerror}") from error
    return file
