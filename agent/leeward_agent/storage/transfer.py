"""Guests' files on their way between directories of different hosts."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

from leeward.agent.disk_files import ROOT_DISK
from leeward.agent.types import GuestSpec
from leeward.errors import FailedPrecondition, InvalidArgument, NotFound, StorageError
from leeward_agent.storage.base import CHUNK_BYTES, DirectoryParts
from leeward_agent.storage.disks import GuestFolder, no_disk
from leeward_agent.storage.files import sync_directory
from leeward_agent.storage.layout import INCOMING, check_names, is_carried, is_qcow2
from leeward_agent.storage.listing import MAX_BYTES, ListedFile, decode_listing, encode_listing
from leeward_agent.storage.names import checked_uid
from leeward_agent.storage.port_disks import ReadDisk
from leeward_agent.storage.receiving import Expected, receive
from leeward_agent.storage.running import Held


class DirectoryTransfer(DirectoryParts):
    """The port `leeward_agent.storage.port_disks.TransferStore` says what each method promises."""

    async def read_disk(self, uid: str, *, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        path = self._disks.instance(checked_uid(uid)) / check_file(file)
        if not file:
            yield encode_listing(await self._listing(uid))
            return
        while data := await self._runner.run("reading a disk", partial(_read, path, offset)):
            offset += len(data)
            yield data

    async def pull_disk(self, spec: GuestSpec, *, operation: str, read: ReadDisk) -> None:
        check_names(spec)
        async with self._folder(spec.uid) as held:
            if await held.run("looking for a disk", partial(_is_pulled, operation=operation)):
                return
            if await held.do("looking for an image", partial(self._images.find, spec.image_digest)) is None:
                raise NotFound.named(f"image {spec.image_digest} in pool {self._runner.pool_id}")
            files = await read_listing(read)
            await held.run("preparing to receive disks", partial(_drop_others, files=files))
            coming_bytes = sum(each.size_bytes for each in files) - await held.run("looking at disks", _come_bytes)
            room = partial(self._runner.check_room, f"receiving the disks of guest {spec.uid}", coming_bytes)
            await held.do("looking for room", room)
            for each in files:
                await self._receive(held, each, read)
            await held.run("finishing disks", partial(_take_over, files=files, operation=operation))

    async def _listing(self, uid: str) -> list[ListedFile]:
        folder = self._disks.instance(uid)
        sizes = await self._runner.run("listing disks", partial(_sizes, folder))
        if ROOT_DISK not in sizes:
            raise no_disk(uid, self._runner.pool_id)
        return [
            ListedFile(name, size_bytes, await self._sha256(folder / name, size_bytes=size_bytes))
            for name, size_bytes in sizes.items()
        ]

    async def _receive(self, held: Held[GuestFolder], file: ListedFile, read: ReadDisk) -> None:
        present = held.subject.path / file.file
        if await held.run("looking for a disk", partial(GuestFolder.has, name=file.file)):
            # An earlier attempt was cut when it gave the files their names, the root disk last.
            size_bytes = await held.do("looking at a disk", partial(_size, present))
            if size_bytes == file.size_bytes and await self._sha256(present, size_bytes=size_bytes) == file.sha256:
                return
            await held.run("deleting a disk", lambda folder: folder.drop(file.file))
        path = held.subject.path / INCOMING / _incoming_name(file)
        expected = Expected(f"{file.file} of guest {held.subject.uid}", path, file.size_bytes, file.sha256)
        await receive(held, self._runner, expected, lambda offset: read(file.file, offset))


def check_file(name: str) -> str:
    """Raises InvalidArgument unless it is empty or may be a file that goes with a guest."""
    if name and not is_carried(name):
        raise InvalidArgument.field("file", f"{name!r} is no file of a guest's disks")
    return name


async def read_listing(read: ReadDisk) -> tuple[ListedFile, ...]:
    """The list from the other side. Raises StorageError, and what `read` raises."""
    data = b""
    async with aclosing(read("", 0)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > MAX_BYTES:
                raise StorageError(f"the list of a guest's files is longer than {MAX_BYTES} bytes")
    return decode_listing(data)


def disk_exists(uid: str, pool_id: str) -> FailedPrecondition:
    """A disk is here that this operation has not brought."""
    return FailedPrecondition(
        f"guest {uid} has a disk in pool {pool_id} already: delete it first, if it is a leftover", reason="DISK_EXISTS"
    )


def _incoming_name(file: ListedFile) -> str:
    # With the digest: a part of another version of the file is another file.
    return f"{file.file}.{file.sha256}.partial"


def _size(path: Path) -> int:
    return path.stat().st_size


def _read(path: Path, offset: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise NotFound(f"guest {path.parent.name} has no {path.name} here", resource=path.parent.name) from error
    try:
        return os.pread(fd, CHUNK_BYTES, offset)
    finally:
        os.close(fd)


def _sizes(folder: Path) -> dict[str, int]:
    try:
        names = sorted(name for name in os.listdir(folder) if is_carried(name))
    except FileNotFoundError:
        return {}
    return {name: (folder / name).stat().st_size for name in names}


def _is_pulled(folder: GuestFolder, *, operation: str) -> bool:
    if not folder.has(ROOT_DISK):
        return False
    if folder.record().pulled_by != operation:
        raise disk_exists(folder.uid, folder.images.pool_id)
    return True


def _drop_others(folder: GuestFolder, *, files: tuple[ListedFile, ...]) -> None:
    """Delete what an earlier attempt received of what is not offered any more."""
    wanted = {_incoming_name(each) for each in files}
    for entry in folder.receiving().iterdir():
        if entry.name not in wanted:
            entry.unlink(missing_ok=True)


def _come_bytes(folder: GuestFolder) -> int:
    return sum(entry.stat().st_size for entry in folder.receiving().iterdir())


def _take_over(folder: GuestFolder, *, files: tuple[ListedFile, ...], operation: str) -> None:
    """All has come: give the files their names, the root disk last."""
    incoming = folder.receiving()
    arrived = [(incoming / _incoming_name(each), each.file) for each in files]
    for path, name in arrived:
        if is_qcow2(name) and path.exists() and (digest := folder.base_of(str(path.relative_to(folder.path)))):
            folder.mark(digest)
    folder.write_record(replace(folder.record(), pulled_by=operation))
    for path, name in arrived:
        if path.exists():
            path.chmod(0o644 if is_qcow2(name) else 0o600)
            path.replace(folder.path / name)
    sync_directory(folder.path)
    incoming.rmdir()
